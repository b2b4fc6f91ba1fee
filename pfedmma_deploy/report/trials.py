"""One trial of a comparison: a method trained with one seed, scored, its result kept.

    FOLDER/run/           the run
    FOLDER/result.json    configuration, criterion and result; written last

A trial of the search for a learning rate looks at validation images, any other at test images.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Final, Literal, get_args

import torch
from pydantic import TypeAdapter

from pfedmma_deploy.config import TrainConfig, stored_config
from pfedmma_deploy.errors import StoreError, TrainingError, UsageError, nearest
from pfedmma_deploy.evaluation.accuracy import Accuracy, harmonic_mean
from pfedmma_deploy.federated.evaluate import (
    RunEvaluation,
    evaluate_run,
    validate_run,
    validate_run_on_others,
)
from pfedmma_deploy.federated.personalize import fine_tune
from pfedmma_deploy.federated.session import open_run_session
from pfedmma_deploy.federated.train import train
from pfedmma_deploy.store.files import json_bytes, write_bytes
from pfedmma_deploy.store.run import Run

RESULT: Final = "result.json"

Criterion = Literal["harmonic", "own"]
"""What a learning rate is chosen by: `harmonic` is the harmonic mean of both of `Validation`'s
figures, `own` the first of them alone, which rewards forgetting."""


@dataclass(frozen=True)
class Validation:
    """Accuracies on validation images among all base names, in percent, means over clients.

    Neither test images nor novel names take part.
    """

    own: float
    """Of each client's model on the client's own images."""
    others: float | None
    """Of each client's model on the images, of all clients together, of base classes that the
    client does not train on; None where every client trains on every base class."""

    def by(self, criterion: Criterion) -> float:
        """What the criterion makes of both.

        The harmonic mean is taken of the two means, as HM3 is in the tables, and not per client
        first: a client may have two or three validation images, and one that gets none of them
        right would count as 0 however good its model is elsewhere. Where `others` is None,
        nothing can be forgotten, and `own` decides.
        """
        if criterion == "own" or self.others is None:
            return self.own
        return harmonic_mean((self.own, self.others)) or 0.0


@dataclass(frozen=True)
class Trial:
    """One run of a comparison: what is trained, where, and what it is scored on."""

    folder: Path
    config: TrainConfig
    criterion: Criterion | None = None
    """Of a trial in the search for a learning rate, which is scored on validation images; None is
    scored on test images."""

    @property
    def is_stored(self) -> bool:
        """Whether the trial has a result already."""
        return (self.folder / RESULT).exists()


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a trial came to; accuracies in percent."""

    method: str
    seed: int
    lr: float
    validation: Validation | None = None
    """Only in the search for a learning rate, and None where training diverged."""
    zero_shot: Accuracy | None = None
    """Means over clients of the frozen backbone on the same images."""
    accuracy: Accuracy | None = None
    """Means over clients of their own models."""
    worst_local: float | None = None
    """Local accuracy of the worst client."""
    worst_all: float | None = None
    """Accuracy on all test images, among all names, of the worst client."""
    losing_share: float | None = None
    """Percent of clients that lose more than a point of base or novel against zero-shot."""
    clients: dict[str, Accuracy] = field(default_factory=dict)
    trained: int
    """Parameters that a client trains."""
    shared: int
    """Of them, those that travel."""
    bytes_up: int
    """Per client and round, as measured, mean over the rounds."""
    bytes_down: int
    seconds: float
    """Of training: all rounds, and the second stage where the method has one."""
    wall_seconds: float | None = field(default=None, compare=False)
    """Of the whole trial, loading and scoring included; None of trials of earlier versions."""


def require_criterion(criterion: str) -> None:
    """Raises `UsageError` for a name that is no `Criterion`."""
    known = get_args(Criterion)
    if criterion not in known:
        raise UsageError(
            f"criterion must be one of {', '.join(known)}, not {criterion!r}"
            f"{nearest(criterion, known)}"
        )


def read_result(trial: Trial) -> Result | None:
    """The stored result of a trial, or None where it is still to be run.

    Raises:
        UsageError: the folder holds a trial with other options, or of another criterion.
    """
    path = trial.folder / RESULT
    if not trial.is_stored:
        return None
    stored = json.loads(path.read_text("utf-8"))
    made_with = stored_config(stored["config"], str(path)).to_dict()
    for name, value in trial.config.to_dict().items():
        if made_with[name] != value:
            raise UsageError(
                f"{trial.folder} was made with {name} = {made_with[name]!r}, now it is {value!r}. "
                "A comparison has one budget for all: take another --out, or delete that folder."
            )
    criterion = stored.get("criterion", "of an earlier version")
    if trial.criterion is not None and criterion != trial.criterion:
        raise UsageError(
            f"{trial.folder} was made for learning rates chosen by the criterion {criterion}, now "
            f"it is {trial.criterion}: take another --out, or delete the folders "
            f"{trial.folder.parents[1].name} and trials beside it."
        )
    return TypeAdapter(Result).validate_python(stored["result"])


def run_trial(trial: Trial, threads: int | None = None) -> Result:
    """Train (or continue), score, store the result and return it; a stored one as it is.

    `threads` are torch's in this process; None leaves them.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    stored = read_result(trial)
    if stored is not None:
        return stored
    start = time.perf_counter()
    folder = trial.folder / "run"
    started = (folder / "manifest.json").exists()
    try:
        run = train(trial.config, folder, resume=started).run
        result = _score(run, trial)
    except TrainingError:
        if trial.criterion is None:
            raise
        # A rate at which the method diverges is a finding of the search, not the end of it.
        result = _result(Run.open(folder), trial.config, seconds=0.0)
    # A continued trial trained for part of its time before.
    result = replace(result, wall_seconds=max(time.perf_counter() - start, result.seconds))
    values = {
        "config": trial.config.to_dict(),
        "criterion": trial.criterion,
        "result": asdict(result),
    }
    write_bytes(trial.folder / RESULT, json_bytes(values))
    return result


def _score(run: Run, trial: Trial) -> Result:
    session = open_run_session(run)
    rounds = run.rounds
    if len(rounds) != run.config.rounds:
        raise StoreError(f"{run.folder} has {len(rounds)} of {run.config.rounds} rounds recorded.")
    seconds = sum(record["seconds"] for record in rounds)
    if session.method.is_two_stage and trial.criterion is None:
        for client in session.federation.clients:
            seconds += fine_tune(run, client.id, session=session).seconds
    result = _result(run, trial.config, seconds)
    if trial.criterion is not None:
        own, others = validate_run(run, session), validate_run_on_others(run, session)
        return replace(result, validation=Validation(own, others))
    found = evaluate_run(run, session=session)
    return replace(
        result,
        zero_shot=found.zero_shot_mean,
        accuracy=found.personalized_mean,
        worst_local=_worst(found, "local"),
        worst_all=_worst(found, "all"),
        losing_share=found.losing_share,
        clients=found.personalized,
    )


def _worst(found: RunEvaluation, figure: str) -> float | None:
    lowest = found.worst[figure]
    return None if lowest is None else float(lowest["accuracy"])


def _result(run: Run, config: TrainConfig, seconds: float) -> Result:
    """What is known of a trial before it is scored."""
    parameters, rounds = run.manifest["parameters"], run.rounds
    bytes_up = bytes_down = 0
    if rounds:
        bytes_up = round(fmean(record["bytes_up_per_client"] for record in rounds))
        bytes_down = round(fmean(record["bytes_down_per_client"] for record in rounds))
    return Result(
        method=config.method,
        seed=config.seed,
        lr=config.lr,
        trained=parameters["shared"] + parameters["local"],
        shared=parameters["shared"],
        bytes_up=bytes_up,
        bytes_down=bytes_down,
        seconds=seconds,
    )
