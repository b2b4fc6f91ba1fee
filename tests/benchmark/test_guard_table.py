"""The table of ways to keep what CLIP knew: its losses and its means, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import guard_table
from pfedmma_deploy.evaluation.accuracy import Accuracy
from pfedmma_deploy.types import ClientData
from tests.images import MemoryDataset

DATASET = MemoryDataset(("cat", "dog"), [0, 1], split="val")
CLIENT = ClientData("a", (0, 1), train=(), val=DATASET.examples, test=())


def test_points_above_zero_shot_and_of_the_worst_client() -> None:
    before = [Accuracy(50.0, 70.0, 80.0, 60.0), Accuracy(70.0, 70.0, 80.0, 60.0)]
    after = [Accuracy(80.0, 72.0, 79.0, 61.0), Accuracy(80.0, 66.0, 80.0, 58.0)]
    row = guard_table._figures(before, after, [0.25, 0.75])
    assert (row["strength"], row["local"], row["base"], row["novel"]) == (0.5, 20.0, -1.0, -0.5)
    assert (row["all"], row["worst_base"], row["worst_novel"]) == (-0.5, -4.0, -1.0)


def test_means_over_seeds_and_the_worst_of_all() -> None:
    common = {"training": "plain", "rule": "1/2", "strength": 0.5, "hm2": 0.0, "all": 0.0}
    rows: list[dict[str, Any]] = []
    for seed, local, worst in ((0, 10.0, -1.0), (1, 6.0, -4.0)):
        figures = {"local": local, "base": 1.0, "novel": 0.0, "seconds": 2.0}
        rows.append({**common, **figures, "seed": seed, "worst_base": worst, "worst_novel": 0.5})
    (cell,) = guard_table.table_rows(rows)
    assert (cell["local"], cell["worst_base"], cell["worst_novel"]) == (8.0, -4.0, 0.5)


class ByStrength:
    """A scorer and a guardian whose figures are a function of the strength."""

    def __init__(self, accuracies: dict[float, float]) -> None:
        self.accuracies = accuracies

    def accuracy_on(self, model: Any, examples: object) -> float:
        return max(v for a, v in self.accuracies.items() if a <= model.strength)

    def movement(self, model: Any, client: object) -> float:
        return float(model.strength**2)


class Model:
    def __init__(self, strength: float = 1.0) -> None:
        self.strength = strength

    def at(self, strength: float) -> Model:
        return Model(strength)


def test_the_best_on_own_images_is_the_weakest_of_equals() -> None:
    scorer: Any = ByStrength({0.0: 50.0, 0.25: 75.0})
    model: Any = Model()
    assert guard_table.own_best(scorer, model, CLIENT) == 0.25


def test_the_knee_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the gain at 1/2, where a quarter has moved; 3/8 has four fifths, and 14 %."""
    scorer: Any = ByStrength({0.0: 50.0, 0.375: 66.0, 0.5: 70.0})
    monkeypatch.setattr(guard_table, "Guardian", lambda scorer, bound: scorer)
    model: Any = Model()
    assert guard_table.knee(scorer, model, CLIENT) == 0.5
    assert guard_table.knee(ByStrength({0.0: 50.0}), model, CLIENT) == 0.0  # type: ignore[arg-type]


class Two(nn.Module):
    """An adapter of one weight; images and texts are turned by a right angle."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0]))

    def encode_image(self, backbone: Any, pixels: Tensor) -> Tensor:
        return torch.tensor([[0.0, 1.0]])

    def encode_text(self, backbone: Any, texts: Any) -> Tensor:
        return torch.tensor([[0.0, 1.0], [1.0, 0.0]])


def penalty(kind: Any) -> float:
    """A penalty's value for one image at (1, 0) and words at (1, 0) and (1, 0)."""
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    method: Any = guard_table.PenalizedPFedMMA()
    method.held = guard_table.Held(None, features, {"weight": torch.tensor([1.0])})  # type: ignore[arg-type]
    backbone: Any = SimpleNamespace(encode_image=lambda pixels: torch.tensor([[1.0, 0.0]]))
    batch: Any = SimpleNamespace(pixels=None, logit_scale=2.0)
    adapter: Any = Two()
    return float(kind(method, backbone, adapter, batch).detach())


def test_penalties_by_hand() -> None:
    # The image turned away by 90 degrees, one of two words as well: 10 (1 + 1/2).
    assert penalty(guard_table.features_penalty) == pytest.approx(15.0)
    # The weight moved by 2: 0.05 / 2 times 4.
    assert penalty(guard_table.proximal_penalty) == pytest.approx(0.1)
    # Beliefs (1/2, 1/2) before, softmax(2, 0) after.
    after = torch.tensor([2.0, 0.0]).softmax(0)
    divergence = float((0.5 * (0.5 / after).log()).sum())
    assert penalty(guard_table.beliefs_penalty) == pytest.approx(5 * divergence)


def test_the_report_has_a_table_for_each_sample(tmp_path: Path) -> None:
    figures = dict.fromkeys(key for key, _ in guard_table.COLUMNS.values())
    row = {**figures, **dict.fromkeys(figures, 1.0), "training": "plain", "rule": "guard 6"}
    rows = [{**row, "sample": sample, "seed": 0} for sample in guard_table.SAMPLES]
    stored = {"rows": rows, "command": "python -m benchmarks.guard_table"}
    guard_table.write_report(tmp_path / "guard.json", json.loads(json.dumps(stored)))
    text = (tmp_path / "guard.md").read_text("utf-8")
    for sample in guard_table.SAMPLES:
        assert f"## {sample}" in text
    assert text.count("| plain | guard 6 | 1.00 |") == 2
