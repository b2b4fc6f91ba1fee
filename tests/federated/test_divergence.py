"""A learning rate that is far too high: said as a sentence, and nothing that was stored is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pfedmma_deploy.config import TrainConfig
from pfedmma_deploy.errors import TrainingError
from pfedmma_deploy.federated.personalize import fine_tune
from pfedmma_deploy.federated.train import train
from pfedmma_deploy.methods.client_run import ClientRun
from pfedmma_deploy.store.run import Run
from tests.federated.test_resume import contents

HUGE = 1e30


@pytest.mark.parametrize("client_batching", [False, True])
def test_a_round_that_diverges(config: TrainConfig, client_batching: bool, tmp_path: Path) -> None:
    wild = replace(config, lr=HUGE, client_batching=client_batching)
    with pytest.raises(TrainingError, match=r"client clinic diverged in round 1.*--lr 1e\+29"):
        train(wild, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert not run.is_complete
    assert run.checkpoint.round == -1


def test_rounds_before_it_are_kept(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What diverges in round 2 once goes on from round 1 later, to what it would have been."""
    sequential = replace(config, client_batching=False)
    train(sequential, tmp_path / "whole")
    batches = ClientRun.batches

    def diverging(self: ClientRun[Any], *args: object) -> object:
        if self.round == 1:
            self.adapter.get_parameter("image.2.up.weight").data.fill_(float("inf"))
        return batches(self, *args)  # type: ignore[arg-type]  # passed on as it came

    with monkeypatch.context() as patch:
        patch.setattr(ClientRun, "batches", diverging)
        with pytest.raises(TrainingError, match="diverged in round 2: its loss came to nan"):
            train(sequential, tmp_path / "run")
    assert Run.open(tmp_path / "run").checkpoint.round == 0
    train(sequential, tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_a_personalization_that_diverges(config: TrainConfig, tmp_path: Path) -> None:
    run = train(config, tmp_path / "run").run
    before = contents(run.folder)
    with pytest.raises(TrainingError, match=r"client clinic diverged in its personalization"):
        fine_tune(run, "clinic", epochs=1, lr=HUGE)
    assert contents(run.folder) == before
