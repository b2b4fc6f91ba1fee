"""The scripts that make the published tables: what they count, and shares of what."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.inference_table import SIZES, share_of_peak, with_shares, without_matmuls
from benchmarks.training_table import RoundFlop, cost_section, count_round
from pfedmma_deploy.backbone.flops import block_flop, image_flop, image_tokens, tower_flop
from pfedmma_deploy.benchmark.report import Row, Section
from pfedmma_deploy.benchmark.timing import Spread
from pfedmma_deploy.benchmark.training import TrainingTask
from tests.tinyclip import register, tiny_backbone

TASK = TrainingTask(register(), clients=2, classes=2, shots=3, batch_size=2)


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
    assert found.naive == trained + evaluated
    # One block of three is kept, and of the last only one token is computed.
    least = block_flop(tokens, 32, 128) + block_flop(tokens, 32, 128, queries=1)
    assert tower_flop(backbone, "image", tokens, start=1).forward == least + 2 * 32 * 16
    assert found.bound > 5


def test_bounds() -> None:
    assert RoundFlop(4 * 10**12, 10**12).bound == 4.0
    row = cost_section([register()]).cells[0]
    assert row[:4] == ["test-clip", "10", "10", "16"] and float(row[-1]) > 1


def test_shares_of_the_peak_by_hand() -> None:
    """A product a second, and eight images in the same second, of so many operations each."""
    ratios = {"matmul fp32": Spread(1.0, 1.0, 1.0)}
    row = Row("rate", "test-clip", "torch", "fp32", batch_size=8, ratios=ratios)
    peak = 2.0 * SIZES["cpu"] ** 3
    plain = image_flop(tiny_backbone(), token_shortcuts=False)
    assert share_of_peak(row, "cpu") == pytest.approx(8 * plain / peak)
    ours = replace(row, clients=3)
    assert share_of_peak(ours, "cpu") == pytest.approx(8 * image_flop(tiny_backbone()) / peak)
    assert share_of_peak(replace(row, precision="int8"), "cpu") is None
    section = Section("t", "", ["model"], [["a"], ["b"]])
    shown = with_shares(section, [replace(row, batch_size=10**6), ours], "cpu")
    share = 100 * 10**6 * plain / peak
    assert shown.columns[-1] == "% of peak" and shown.cells[0] == ["a", f"{share:.0f}"]
    assert without_matmuls([row, replace(row, name="matmul fp32")]) == [replace(row, ratios=None)]
