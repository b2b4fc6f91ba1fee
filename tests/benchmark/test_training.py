"""The training benchmark: what it counts, and that its subjects compute the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pfedmma_deploy.backbone.flops import block_flop, image_tokens, tower_flop
from pfedmma_deploy.benchmark.round_flop import RoundFlop, count_round
from pfedmma_deploy.benchmark.training import (
    OURS,
    SAME_PRODUCTS,
    STRAIGHT,
    TrainingSeconds,
    TrainingTask,
    noise_federation,
    time_subject,
    weight_difference,
)
from pfedmma_deploy.benchmark.training_tables import Timed, curve_section, round_section
from tests.tinyclip import register, tiny_backbone

TASK = TrainingTask(register(), clients=2, classes=2, shots=3, batch_size=2)


def test_the_federation_has_clients_of_one_size() -> None:
    federation = noise_federation(replace(TASK, clients=3), 16)
    assert [len(client.train) for client in federation.clients] == [2, 2, 2]
    assert len({e.key for client in federation.clients for e in client.train}) == 6
    assert (len(federation.base_test), len(federation.novel_test)) == (2, 2)


def test_both_ways_come_to_the_same_weights() -> None:
    straight, ours = time_subject(TASK, STRAIGHT, 1), time_subject(TASK, OURS, 1)
    assert weight_difference(straight, ours) < 1e-6
    assert straight.train > 0 < straight.evaluate


def test_a_round_counted_by_hand() -> None:
    """Two clients, three images and two steps each, two prompts a step, 2 + 2 test images."""
    backbone = tiny_backbone()
    plain = replace(backbone, token_shortcuts=False)
    tokens = image_tokens(backbone)
    image = tower_flop(plain, "image", tokens, adapted=1)
    text = tower_flop(plain, "text", 77, adapted=1)
    trained = 6 * image.total + 2 * 2 * 2 * text.total
    evaluated = 2 * 4 * image.forward + 2 * 4 * text.forward
    found = count_round(TASK, backbone)
    assert found.straight == trained + evaluated
    # One block of three is kept, and of the last only one token is computed.
    least = block_flop(tokens, 32, 128) + block_flop(tokens, 32, 128, queries=1)
    assert tower_flop(backbone, "image", tokens, start=1).forward == least + 2 * 32 * 16
    assert found.bound > 5


def test_ratios_are_to_the_straight_reading() -> None:
    def took(name: str, seconds: float, weight: float) -> TrainingSeconds:
        shared = {"w": np.array([weight], np.float32)}
        return TrainingSeconds(name, seconds, seconds / 2, 0.1, 0.5, 10**9, shared)

    timed = Timed(TASK, RoundFlop(200, 100), [took(STRAIGHT, 6.0, 1.0), took(OURS, 4.0, 1.5)])
    first, second = timed.to_rows()
    assert first["ratio"] is None
    assert second["ratio"] == pytest.approx(1.5)
    assert second["share_of_bound"] == pytest.approx(0.75)
    assert second["weight_difference"] == 0.5
    cells = round_section([timed]).cells
    assert [row[11:14] for row in cells] == [["-", "2.00", "-"], ["1.50", "2.00", "75%"]]
    faster = Timed(
        TASK,
        RoundFlop(200, 100),
        [took(STRAIGHT, 6.0, 1.0), took(SAME_PRODUCTS, 4.0, 1.0), took(OURS, 2.0, 1.0)],
    )
    shares = [row["share_of_bound"] for row in faster.to_rows()]
    assert shares == [None, pytest.approx(0.75), None], "of the one with the same products only"
    assert curve_section([(TASK, RoundFlop(4 * 10**12, 10**12))]).cells[0][-1] == "4.00"
