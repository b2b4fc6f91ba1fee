"""The scripts that make the published tables: what they count, and shares of what."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.inference_table import SHARE, SIZES, compare_with_peak
from benchmarks.training_table import count_round
from pfedmma_deploy.backbone.flops import block_flop, image_flop, image_tokens, tower_flop
from pfedmma_deploy.benchmark.inference import sections
from pfedmma_deploy.benchmark.report import new_row
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
    naive, ours = count_round(TASK, backbone)
    assert naive == trained + evaluated
    # One block of three is kept, and of the last only one token is computed.
    least = block_flop(tokens, 32, 128) + block_flop(tokens, 32, 128, queries=1)
    assert tower_flop(backbone, "image", tokens, start=1).forward == least + 2 * 32 * 16
    assert naive / ours > 5


def test_shares_of_the_peak_by_hand() -> None:
    """A product a second, and eight images in the same second, of so many operations each."""
    ratios = {"matmul fp32": {"median": 1.0, "low": 1.0, "high": 1.0}}
    about = {"name": "torch", "precision": "fp32"}
    row = new_row("rate", "test-clip", about, batch_size=8, ratios=ratios)
    matmul = {**row, "name": "matmul fp32", "images_per_second": 8.0}
    peak = 2.0 * SIZES["cpu"] ** 3
    plain = image_flop(tiny_backbone(), token_shortcuts=False)
    rows = [row, {**row, "clients": 3}, {**row, "precision": "int8"}, matmul]
    (torch, ours, int8), (found,) = compare_with_peak(rows, "cpu")
    assert torch["share_of_peak"] == pytest.approx(8 * plain / peak)
    assert ours["share_of_peak"] == pytest.approx(8 * image_flop(tiny_backbone()) / peak)
    assert "share_of_peak" not in int8
    assert found["flop_per_second"] == peak
    (section,) = sections([{**torch, "share_of_peak": 0.35, "ratios": {}}, int8], SHARE)
    assert section.columns[-1] == "% of peak"
    assert [cells[-1] for cells in section.cells] == ["35.0", "-"]
