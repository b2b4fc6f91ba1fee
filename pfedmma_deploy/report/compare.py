"""`pfedmma compare`: several methods, several seeds, one protocol, one budget.

    DIR/trials/<method>/seed-<s>/      run/ and result.json
    DIR/tuning/<method>/lr-<lr>/       the same for one learning rate of the grid
    DIR/compare.md .csv .json .png     written again from what is there

A trial is one method trained with one seed, and scored. One that has its result is not run again;
one that was cut off is continued.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean

import torch
from pydantic import TypeAdapter

from pfedmma_deploy.config import TrainConfig, stored_config
from pfedmma_deploy.errors import StoreError, TrainingError, UsageError
from pfedmma_deploy.evaluation.accuracy import Accuracy
from pfedmma_deploy.federated.evaluate import RunEvaluation, evaluate_run, validate_run
from pfedmma_deploy.federated.personalize import fine_tune
from pfedmma_deploy.federated.session import open_run_session
from pfedmma_deploy.federated.train import train
from pfedmma_deploy.methods.registry import get_method
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.store.files import json_bytes, write_bytes
from pfedmma_deploy.store.run import Run
from pfedmma_deploy.system import process_pool

RESULT = "result.json"
GRID = (0.1, 1.0, 10.0)
"""Learning rates that are tried, as multiples of the configured one."""
MOST_STEPS_OUT = 2
"""How often the grid grows by a factor of ten where the best lies on its edge."""


@dataclass(frozen=True)
class Trial:
    """One run of a comparison: what is trained, where, and whether on test or validation images."""

    folder: Path
    config: TrainConfig
    is_tuning: bool = False
    """Scored on the clients' validation images only."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a trial came to; accuracies in percent."""

    method: str
    seed: int
    lr: float
    validation: float | None = None
    """Mean over clients on their own validation images; only while tuning, and None where training
    diverged."""
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


@dataclass(frozen=True)
class Comparison:
    """All results of a comparison."""

    folder: Path
    config: TrainConfig
    """The options that the methods have in common (of the first method and seed)."""
    results: Mapping[str, Sequence[Result]]
    """By method, one per seed; methods and seeds in their order."""
    tuning: Mapping[str, Sequence[Result]]
    """By method, one per learning rate, ascending; empty without tuning."""


def compare(
    methods: Sequence[str],
    seeds: Sequence[int],
    configure: Callable[[str, int], TrainConfig],
    folder: Path,
    *,
    tune: bool = False,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Comparison:
    """Run what is missing of a comparison and collect all of it.

    Args:
        methods: names of methods.
        seeds: each is one repetition: another partition of the data, another initial state.
        configure: (method, seed) -> the run's configuration; data, backbone and budget must not
            depend on the method.
        folder: where trials and results are kept.
        tune: choose each method's learning rate on validation images first, with the first seed.
        jobs: trials at the same time, each in a process of its own.
        progress: is told of each trial.

    Raises:
        UsageError: unknown or repeated methods or seeds, or a folder made with other options.
    """
    _require_lists(methods, seeds, jobs)
    progress = progress or Silent()
    configs = {(name, seed): configure(name, seed) for name in methods for seed in seeds}
    tuning: dict[str, list[Result]] = {}
    if tune:
        first = {name: configs[name, seeds[0]] for name in methods if get_method(name).is_trained}
        tuning = _tune(first, folder, jobs, progress)
    trials = []
    for (name, seed), config in configs.items():
        if name in tuning:
            config = replace(config, lr=best_rate(tuning[name]))
        trials.append(Trial(folder / "trials" / name / f"seed-{seed}", config))
    results = _run_all(trials, jobs, progress, "trials")
    return Comparison(folder, trials[0].config, results, tuning)


def best_rate(results: Sequence[Result]) -> float:
    """The learning rate of the best validation accuracy; the smallest of equals."""
    return max(results, key=lambda one: (one.validation or 0.0, -one.lr)).lr


def _tune(
    configs: Mapping[str, TrainConfig], folder: Path, jobs: int, progress: Progress
) -> dict[str, list[Result]]:
    """The grid of every method, grown where its best lies on the edge; ascending rates."""
    rates = {name: [config.lr * factor for factor in GRID] for name, config in configs.items()}
    found: dict[str, list[Result]] = {}
    for _ in range(MOST_STEPS_OUT + 1):
        trials = []
        for name, config in configs.items():
            for rate in sorted(rates[name]):
                place = folder / "tuning" / name / f"lr-{rate:.3g}"
                tuned = replace(config, lr=float(f"{rate:.3g}"))
                trials.append(Trial(place, tuned, is_tuning=True))
        found = _run_all(trials, jobs, progress, "trials of the grid")
        is_settled = True
        for name, results in found.items():
            best = best_rate(results)
            # The best on the edge of its grid may have a better one beyond it.
            if math.isclose(best, results[0].lr):
                rates[name].append(best * 0.1)
            elif math.isclose(best, results[-1].lr):
                rates[name].append(best * 10)
            else:
                continue
            is_settled = False
        if is_settled:
            break
    return found


def _run_all(
    trials: Sequence[Trial], jobs: int, progress: Progress, what: str
) -> dict[str, list[Result]]:
    """Results by method; what is stored is read, the rest is run, `jobs` at a time."""
    found = {trial.folder: read_result(trial) for trial in trials}
    missing = [trial for trial in trials if found[trial.folder] is None]
    if missing and len(missing) < len(trials):
        progress.note(f"{len(trials) - len(missing)} of {len(trials)} {what} are there already")
    for trial, result in progress.track(_finished(missing, jobs), what, len(missing)):
        found[trial.folder] = result
        progress.note(_line(trial, result))
    results: dict[str, list[Result]] = {}
    for trial in trials:
        done = found[trial.folder]
        assert done is not None
        results.setdefault(trial.config.method, []).append(done)
    return results


def _finished(trials: Sequence[Trial], jobs: int) -> Iterator[tuple[Trial, Result]]:
    """Trials with their results, as they finish."""
    if jobs == 1:
        for trial in trials:
            yield trial, run_trial(trial)
        return
    # Jobs that each use all cores would wait for each other.
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with process_pool(jobs) as pool:
        waiting = {pool.submit(run_trial, trial, threads): trial for trial in trials}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BaseException:
            # After an error or Ctrl-C nothing new begins; what runs is continued the next time.
            pool.shutdown(cancel_futures=True)
            raise


def _line(trial: Trial, result: Result) -> str:
    name = f"{result.method}, seed {result.seed}"
    if trial.is_tuning:
        found = "diverged" if result.validation is None else f"validation {result.validation:.1f} %"
        return f"{name}, lr {result.lr:.3g}: {found}"
    assert result.accuracy is not None
    shown = []
    for key, figure in result.accuracy.to_dict().items():
        if key in ("local", "base", "novel") and figure is not None:
            shown.append(f"{key} {figure:.1f}")
    seconds = f"{result.seconds:.0f} s of training"
    return f"{name}, lr {result.lr:.3g}: {', '.join(shown)} ({seconds})"


def _require_lists(methods: Sequence[str], seeds: Sequence[int], jobs: int) -> None:
    for what, values in (("method", methods), ("seed", seeds)):
        if not values:
            raise UsageError(f"name at least one {what} to compare")
        for value in values:
            if list(values).count(value) > 1:
                raise UsageError(f"the {what} {value} is named twice")
    if jobs < 1:
        raise UsageError(f"jobs should be at least 1, not {jobs}")
    for name in methods:
        get_method(name)


def read_result(trial: Trial) -> Result | None:
    """The stored result of a trial, or None where it is still to be run.

    Raises:
        UsageError: the folder holds a trial with other options.
    """
    path = trial.folder / RESULT
    if not path.exists():
        return None
    stored = json.loads(path.read_text("utf-8"))
    made_with = stored_config(stored["config"], str(path)).to_dict()
    for name, value in trial.config.to_dict().items():
        if made_with[name] != value:
            raise UsageError(
                f"{trial.folder} was made with {name} = {made_with[name]!r}, now it is {value!r}. "
                "A comparison has one budget for all: take another --out, or delete that folder."
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
    values = {"config": trial.config.to_dict(), "result": asdict(result)}
    write_bytes(trial.folder / RESULT, json_bytes(values))
    return result


def _score(run: Run, trial: Trial) -> Result:
    session = open_run_session(run)
    rounds = run.rounds
    if len(rounds) != run.config.rounds:
        raise StoreError(f"{run.folder} has {len(rounds)} of {run.config.rounds} rounds recorded.")
    seconds = sum(record["seconds"] for record in rounds)
    if session.method.is_two_stage and not trial.is_tuning:
        for client in session.federation.clients:
            seconds += fine_tune(run, client.id, session=session).seconds
    result = _result(run, trial.config, seconds)
    if trial.is_tuning:
        return replace(result, validation=validate_run(run, session))
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
