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
from pfedmma_deploy.export.run import measure, run_history
from pfedmma_deploy.federated.evaluate import RunEvaluation
from pfedmma_deploy.progress import Silent
from pfedmma_deploy.runtime.manifest import Figures
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
    measured = RunEvaluation(
        {"1": Accuracy(50.0, 60.0, None)}, {"1": Accuracy(75.0, 55.0, None, 65.0)}
    )
    # "new" joined later with images of its own and brought a fourth class.
    found = run_history(run, federation(), ["0", "1", "new"], 4, measured)
    assert (found.rounds, found.bytes_up_per_client_round) == (2, 100)
    assert found.bytes_total == 3 * 160, "two clients in the first round, one in the second"
    assert found.clients["0"].num_examples == (2, 1, 0, 0)
    assert found.clients["1"].num_examples == (0, 1, 0, 0)
    assert found.clients["new"].num_examples == ()
    assert found.clients["0"].zero_shot is None
    assert found.clients["1"].personalized == Figures(75.0, 55.0, None, 65.0)
    assert found.parameters["shared"] == 25
    found.require_fitting(["zero-shot", "0", "1", "new"], 4)


def test_a_client_leaves(run: Run) -> None:
    found = run_history(run, federation(), ["0", "1"], 3, None)
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
