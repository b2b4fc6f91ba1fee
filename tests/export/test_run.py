"""What an export remembers of its run, counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pfedmma_deploy.evaluation.accuracy import Accuracy
from pfedmma_deploy.export import run as module
from pfedmma_deploy.export.bundle_clients import without_client
from pfedmma_deploy.export.run import measure, measure_curves, run_history
from pfedmma_deploy.federated.evaluate import RunEvaluation
from pfedmma_deploy.progress import Silent
from pfedmma_deploy.runtime.manifest import CurvePoint, Figures
from pfedmma_deploy.store.run import Run
from pfedmma_deploy.types import ClientData, Example, Federation
from tests.images import MemoryDataset

ROUNDS: list[dict[str, Any]] = [
    {"clients": ["0", "1"], "bytes_up_per_client": 100, "bytes_down_per_client": 60.0},
    {"clients": ["1"], "bytes_up_per_client": 100, "bytes_down_per_client": 60.0},
]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "rounds.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in ROUNDS))
    parameters = {"shared": 25, "local": 100, "frozen": 875}
    manifest = {"bytes_per_round": {"up": 100, "down": 60}, "parameters": parameters}
    return Run(tmp_path, manifest)


def federation() -> Federation:
    examples = MemoryDataset(("cat", "dog", "owl"), [0, 0, 1]).examples

    def client(name: str, train: tuple[Example, ...]) -> ClientData:
        return ClientData(name, tuple(sorted({e.label for e in train})), train, (), ())

    return Federation(
        dataset=MemoryDataset(("cat", "dog", "owl"), [0, 0, 1]),
        base=(0, 1),
        novel=(2,),
        clients=(client("0", examples), client("1", examples[2:])),
        base_test=examples,
        novel_test=(),
    )


def test_counts_traffic_and_accuracies(run: Run) -> None:
    before, after = Accuracy(50.0, 60.0, None), Accuracy(75.0, 55.0, None, 65.0)
    measured = RunEvaluation({"1": before}, {"1": after}, {"1": 1.0})
    curves = {"1": {0.0: before, 0.5: Accuracy(70.0, 62.0, None), 1.0: after}}
    # "new" joined later with images of its own and brought a fourth class.
    found = run_history(run, federation(), ["0", "1", "new"], 4, measured, curves)
    assert (found.rounds, found.bytes_up_per_client_round) == (2, 100)
    assert found.bytes_total == 3 * 160, "two clients in the first round, one in the second"
    assert found.clients["0"].num_examples == (2, 1, 0, 0)
    assert found.clients["1"].num_examples == (0, 1, 0, 0)
    assert found.clients["new"].num_examples == ()
    assert found.clients["0"].zero_shot is None
    assert found.clients["1"].personalized == Figures(75.0, 55.0, None, 65.0)
    assert found.clients["0"].curve == ()
    assert found.clients["1"].curve == (
        CurvePoint(50.0, 60.0, None, strength=0.0),
        CurvePoint(70.0, 62.0, None, strength=0.5),
        CurvePoint(75.0, 55.0, None, 65.0, strength=1.0),
    )
    assert found.parameters["shared"] == 25
    found.require_fitting(["zero-shot", "0", "1", "new"], 4)


def test_a_client_leaves(run: Run) -> None:
    found = run_history(run, federation(), ["0", "1"], 3, None, {})
    fewer = without_client(found, "0")
    assert fewer is not None and list(fewer.clients) == ["1"]
    assert fewer.bytes_total == found.bytes_total
    assert without_client(None, "0") is None


def test_too_many_images_are_not_measured_and_that_is_said(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    progress = Silent()
    monkeypatch.setattr(progress, "note", notes.append)
    monkeypatch.setattr(module, "evaluate_run", lambda *_, clients, **__: tuple(clients))
    workspace = cast("Any", SimpleNamespace(federation=federation()))
    # Three test images through zero-shot and one client.
    monkeypatch.setattr(module, "MOST_IMAGES", 6)
    found: Any = measure(run, workspace, ["1", "new"], progress)
    assert found == ("1", "new")
    monkeypatch.setattr(module, "MOST_IMAGES", 5)
    assert measure(run, workspace, ["1", "new"], progress) is None
    assert notes == [
        "The bundle will not say how accurate its clients are: that takes 6 images through the "
        "model, more than 5; `pfedmma evaluate` measures it."
    ]


def test_curves_that_take_long_are_not_measured_and_that_is_said(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    progress = Silent()
    monkeypatch.setattr(progress, "note", notes.append)
    monkeypatch.setattr(module, "strength_curves", lambda *_: "measured")
    workspace = cast("Any", SimpleNamespace(federation=federation()))
    accuracy = Accuracy(50.0, 60.0, None)
    measured = RunEvaluation({"1": accuracy}, {"1": accuracy}, {"1": 1.0})
    strengths = (0, 0.5, 0.75, 1, 1.5)
    assert measure_curves(run, workspace, None, strengths, progress) == {}
    # Three test images at each of the three strengths that are not 0 or 1.
    monkeypatch.setattr(module, "MOST_CURVE_IMAGES", 9)
    found: Any = measure_curves(run, workspace, measured, strengths, progress)
    assert found == "measured"
    monkeypatch.setattr(module, "MOST_CURVE_IMAGES", 8)
    assert measure_curves(run, workspace, measured, strengths, progress) == {}
    assert notes == [
        "The bundle will not say how accurate its clients are at other strengths than 1: that "
        "takes 9 images through the model, more than 8; export fewer clients with --client to "
        "have it measured."
    ]
