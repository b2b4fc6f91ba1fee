"""One method with one seed, trained and scored: what a comparison is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pfedmma_deploy.config import TrainConfig, stored_config
from pfedmma_deploy.errors import StoreError, TrainingError, UsageError
from pfedmma_deploy.evaluation.accuracy import Accuracy
from pfedmma_deploy.federated.evaluate import evaluate_run, validate_run
from pfedmma_deploy.federated.personalize import fine_tune
from pfedmma_deploy.federated.session import open_run_session
from pfedmma_deploy.federated.train import train
from pfedmma_deploy.store.files import json_bytes, write_bytes
from pfedmma_deploy.store.run import Run

RESULT = "result.json"


@dataclass(frozen=True)
class Trial:
    """One run of a comparison: what is trained, where, and whether on test or validation images."""

    folder: Path
    config: TrainConfig
    is_tuning: bool = False
    """Scored on the clients' validation images only."""


@dataclass(frozen=True)
class Result:
    """What a trial came to; accuracies in percent."""

    method: str
    seed: int
    lr: float
    validation: float | None
    """Mean over clients on their own validation images; only while tuning, and None where training
    diverged."""
    zero_shot: Accuracy | None
    """Means over clients of the frozen backbone on the same images."""
    accuracy: Accuracy | None
    """Means over clients of their own models."""
    worst_local: float | None
    """Local accuracy of the worst client."""
    clients: dict[str, Accuracy]
    trained: int
    """Parameters that a client trains."""
    shared: int
    """Of them, those that travel."""
    bytes_up: int
    """Per client and round, as measured, mean over the rounds."""
    bytes_down: int
    seconds: float
    """Of training: all rounds, and the second stage where the method has one."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Result:
        """What `to_dict` gave."""
        found = dict(values)
        for name in ("zero_shot", "accuracy"):
            found[name] = None if found[name] is None else Accuracy(**found[name])
        found["clients"] = {name: Accuracy(**one) for name, one in found["clients"].items()}
        return cls(**found)


def read_result(trial: Trial) -> Result | None:
    """The stored result of a trial, or None where it is still to be run.

    Raises:
        UsageError: the folder holds a trial with other options.
    """
    path = trial.folder / RESULT
    if not path.exists():
        return None
    stored = json.loads(path.read_text("utf-8"))
    made_with = stored_config(stored["config"], str(path)).to_options()
    for name, value in trial.config.to_options().items():
        if made_with[name] != value:
            raise UsageError(
                f"{trial.folder} was made with {name} = {made_with[name]!r}, now it is {value!r}. "
                "A comparison has one budget for all: take another --out, or delete that folder."
            )
    return Result.from_dict(stored["result"])


def run_trial(trial: Trial, threads: int | None = None) -> Result:
    """Train (or continue), score, store the result and return it.

    Args:
        trial: what to run; a result that is stored already is returned as it is.
        threads: torch's threads in this process; None leaves them.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    stored = read_result(trial)
    if stored is not None:
        return stored
    folder = trial.folder / "run"
    started = (folder / "manifest.json").exists()
    try:
        run = train(trial.config, folder, resume=started).run
        result = _score(run, trial)
    except TrainingError:
        if not trial.is_tuning:
            raise
        # A rate at which the method diverges is a finding of the search, not the end of it.
        result = _result(Run.open(folder), trial.config, seconds=0.0)
    values = {"config": trial.config.to_dict(), "result": result.to_dict()}
    write_bytes(trial.folder / RESULT, json_bytes(values))
    return result


def _score(run: Run, trial: Trial) -> Result:
    session = open_run_session(run)
    rounds = run.rounds
    if len(rounds) != run.config.rounds:
        raise StoreError(f"{run.folder} has {len(rounds)} of {run.config.rounds} rounds recorded.")
    seconds = sum(record["seconds"] for record in rounds)
    if session.method.is_two_stage and not trial.is_tuning:
        seconds += sum(
            fine_tune(run, client.id, session=session).seconds
            for client in session.federation.clients
        )
    result = _result(run, trial.config, seconds)
    if trial.is_tuning:
        return replace(result, validation=validate_run(run, session))
    found = evaluate_run(run, session=session)
    local = [one.local for one in found.personalized.values() if one.local is not None]
    return replace(
        result,
        zero_shot=found.zero_shot_mean,
        accuracy=found.personalized_mean,
        worst_local=min(local, default=None),
        clients=found.personalized,
    )


def _result(run: Run, config: TrainConfig, seconds: float) -> Result:
    """What is known of a trial before it is scored."""
    parameters, rounds = run.manifest["parameters"], run.rounds

    def mean(key: str) -> int:
        total: int = sum(record[key] for record in rounds)
        return round(total / max(1, len(rounds)))

    return Result(
        method=config.method,
        seed=config.seed,
        lr=config.lr,
        validation=None,
        zero_shot=None,
        accuracy=None,
        worst_local=None,
        clients={},
        trained=parameters["shared"] + parameters["local"],
        shared=parameters["shared"],
        bytes_up=mean("bytes_up_per_client"),
        bytes_down=mean("bytes_down_per_client"),
        seconds=seconds,
    )
