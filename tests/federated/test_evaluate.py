"""What stands over the clients of a run: means, the worst one, those that lose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.config import PartitionConfig, TrainConfig
from pfedmma_deploy.evaluation.accuracy import Accuracy, Scorer
from pfedmma_deploy.federated.evaluate import (
    RunEvaluation,
    validate_run,
    validate_run_on_others,
)
from pfedmma_deploy.federated.session import open_run_session
from pfedmma_deploy.federated.train import train
from pfedmma_deploy.types import Example
from tests.federated.conftest import config, one_thread, sites

__all__ = ["config", "one_thread", "sites"]

SITES = ("clinic", "harbour")
ZERO_SHOT = Accuracy(local=60.0, base=70.0, novel=80.0, all=65.0)
FOUND = RunEvaluation(
    zero_shot=dict.fromkeys(("north", "south", "west"), ZERO_SHOT),
    personalized={
        "north": Accuracy(90.0, 69.0, 80.0, 66.0),  # one point of base: not more
        "south": Accuracy(80.0, 75.0, 78.5, 64.0),  # one and a half of novel
        "west": Accuracy(None, 75.0, 80.0, 70.0),
    },
    strengths={"north": 1.0, "south": 0.5, "west": 0.0},
)


def test_worst_and_losing_by_hand() -> None:
    assert FOUND.losing_clients == ["south"]
    assert FOUND.losing_share == 100 / 3
    worst = FOUND.worst
    assert worst["local"] == {"client": "south", "accuracy": 80.0}
    assert worst["base"] == {"client": "north", "accuracy": 69.0}
    assert worst["novel"] == {"client": "south", "accuracy": 78.5}
    assert worst["all"] == {"client": "south", "accuracy": 64.0}


def test_what_nobody_has_has_no_worst() -> None:
    figures = {"a": Accuracy(1.0, 2.0, None)}
    one = RunEvaluation(figures, figures, {"a": 1.0})
    assert one.worst["novel"] is None and one.worst["base"] == {"client": "a", "accuracy": 2.0}
    assert one.losing_share == 0.0


def test_the_names_that_json_uses() -> None:
    values = FOUND.to_dict()
    assert list(values) == [
        "zero_shot",
        "personalized",
        "worst",
        "losing_share",
        "losing_clients",
        "clients",
    ]
    assert values["personalized"]["all"] == 200 / 3
    assert values["clients"]["north"]["zero_shot"]["base"] == 70.0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Keys of the images that models are scored on; the first is 60 % right, the others 30 %."""
    found: list[list[str]] = []

    def accuracy_on(self: Scorer, adapter: Adapter, examples: Sequence[Example]) -> float:
        found.append(sorted(example.key for example in examples))
        return 60.0 if len(found) == 1 else 30.0

    monkeypatch.setattr(Scorer, "accuracy_on", accuracy_on)
    return found


def test_validation_on_own_and_on_other_classes(
    asked: list[list[str]], tmp_path: Path, config: TrainConfig
) -> None:
    """Two clients with one base class each, of which both sites have two validation images."""
    disjoint = PartitionConfig(scheme="disjoint", clients=2, num_shots=0)
    unguarded = replace(config, partition=disjoint, rounds=1, guard=100.0)
    run = train(unguarded, tmp_path / "run").run
    session = open_run_session(run)
    assert validate_run(run, session) == 45.0
    own = asked[:]
    asked.clear()
    assert validate_run_on_others(run, session) == 45.0
    # What is own to one is other to the other, and no test image and no novel class is among them.
    assert asked == own[::-1]
    keys = [f"{s}/val/{c}/{i}.png" for c in ("cat", "dog") for s in SITES for i in (0, 1)]
    assert sorted(own) == [keys[:4], keys[4:]]


def test_who_trains_on_every_base_class_forgets_none(tmp_path: Path, config: TrainConfig) -> None:
    run = train(replace(config, rounds=1), tmp_path / "run").run
    assert validate_run_on_others(run, open_run_session(run)) is None
