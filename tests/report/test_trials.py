"""One trial: what it is scored on, that it is run once, and what it was made with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pfedmma_deploy.config import TrainConfig
from pfedmma_deploy.errors import TrainingError, UsageError
from pfedmma_deploy.report.compare import best_rate
from pfedmma_deploy.report.trials import Trial, Validation, read_result, run_trial
from tests.federated.conftest import config, one_thread, sites
from tests.report.comparisons import result

__all__ = ["config", "one_thread", "sites"]


def test_the_criteria_by_hand() -> None:
    """2 / (1/80 + 1/40) = 53.3."""
    found = Validation(80.0, 40.0)
    assert found.by("harmonic") == pytest.approx(160 / 3)
    assert found.by("own") == 80.0
    assert Validation(80.0, 0.0).by("harmonic") == 0.0


def test_where_nothing_can_be_forgotten_own_classes_decide() -> None:
    assert Validation(80.0, None).by("harmonic") == 80.0


def test_a_trial_of_another_criterion_is_refused(tmp_path: Path, config: TrainConfig) -> None:
    trial = Trial(tmp_path / "tuning" / "pfedmma" / "lr-0.05", config, "own")
    run_trial(trial)
    with pytest.raises(UsageError) as caught:
        read_result(replace(trial, criterion="harmonic"))
    assert str(caught.value) == (
        f"{trial.folder} was made for learning rates chosen by the criterion own, now it is "
        "harmonic: take another --out, or delete the folders tuning and trials beside it."
    )
    path = trial.folder / "result.json"
    stored = json.loads(path.read_text("utf-8"))
    del stored["criterion"]
    stored["result"]["validation"] = 71.0
    path.write_text(json.dumps(stored), "utf-8")
    with pytest.raises(UsageError, match="by the criterion of an earlier version, now it is own"):
        read_result(trial)


def test_a_real_trial_is_run_once_and_kept(tmp_path: Path, config: TrainConfig) -> None:
    trial = Trial(tmp_path / "one", config)
    first = run_trial(trial)
    assert first.accuracy is not None
    assert first.worst_local is not None
    assert first.bytes_up == 4 * first.shared
    written = (tmp_path / "one" / "run" / "manifest.json").stat().st_mtime_ns
    assert run_trial(trial) == first
    assert (tmp_path / "one" / "run" / "manifest.json").stat().st_mtime_ns == written
    with pytest.raises(UsageError, match="was made with rounds = 2, now it is 3"):
        read_result(Trial(tmp_path / "one", replace(config, rounds=3)))


def test_a_cut_off_trial_is_continued(tmp_path: Path, config: TrainConfig) -> None:
    """The result is gone, the run is there: nothing is trained again, the figures are the same."""
    trial = Trial(tmp_path / "one", config)
    first = run_trial(trial)
    (tmp_path / "one" / "result.json").unlink()
    assert run_trial(trial) == first


def test_tuning_looks_at_validation_images_only(tmp_path: Path, config: TrainConfig) -> None:
    found = run_trial(Trial(tmp_path / "one", config, "harmonic"))
    assert found.validation is not None
    assert found.accuracy is None
    assert found.wall_seconds is not None
    assert found.wall_seconds >= found.seconds


def test_a_rate_that_diverges_is_a_finding(tmp_path: Path, config: TrainConfig) -> None:
    wild = Trial(tmp_path / "wild", replace(config, lr=1e30), "harmonic")
    found = run_trial(wild)
    assert found.validation is None
    assert run_trial(wild) == found, "it is remembered"
    assert best_rate([found, result(lr=0.01, validation=Validation(30.0, 9.0))], "own") == 0.01
    with pytest.raises(TrainingError, match="diverged in round 1"):
        run_trial(Trial(tmp_path / "scored", wild.config))
