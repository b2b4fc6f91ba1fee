"""`pfedmma compare`: several methods, several seeds, one protocol, one budget.

    DIR/trials/<method>/seed-<s>/      run/ and result.json
    DIR/tuning/<method>/lr-<lr>/       the same for one learning rate of the grid
    DIR/compare.md .csv .json .png     written again from what is there

A trial that has its result is not run again; one that was cut off is continued.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from pathlib import Path

from pfedmma_deploy.config import TrainConfig
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.methods.registry import get_method
from pfedmma_deploy.processes import process_pool
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.report.trial import Result, Trial, read_result, run_trial

GRID = (0.1, 1.0, 10.0)
"""Learning rates that are tried, as multiples of the configured one."""
MOST_STEPS_OUT = 2
"""How often the grid grows by a factor of ten where the best lies on its edge."""


@dataclass(frozen=True)
class Comparison:
    """All results of a comparison."""

    folder: Path
    config: TrainConfig
    """The options that the methods have in common (of the first method and seed)."""
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    results: Mapping[str, Sequence[Result]]
    """By method, one per seed."""
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
        seeds: each is one repetition: another division of the data, another initial state.
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
        first = {name: configs[name, seeds[0]] for name in methods if _learns(name)}
        tuning = _tune(first, folder, jobs, progress)
        for (name, seed), config in configs.items():
            if name in tuning:
                configs[name, seed] = replace(config, lr=best_rate(tuning[name]))
    trials = [
        Trial(folder / "trials" / name / f"seed-{seed}", config)
        for (name, seed), config in configs.items()
    ]
    found = _run_all(trials, jobs, progress, "trials")
    results = {
        name: [found[folder / "trials" / name / f"seed-{seed}"] for seed in seeds]
        for name in methods
    }
    return Comparison(
        folder, configs[methods[0], seeds[0]], tuple(methods), tuple(seeds), results, tuning
    )


def best_rate(results: Sequence[Result]) -> float:
    """The learning rate of the best validation accuracy; the smallest of equals."""
    return max(results, key=lambda one: (one.validation or 0.0, -one.lr)).lr


def _learns(name: str) -> bool:
    return get_method(name).is_trained


def _tune(
    configs: Mapping[str, TrainConfig], folder: Path, jobs: int, progress: Progress
) -> dict[str, list[Result]]:
    """The grid of every method, grown where its best lies on the edge."""
    rates = {name: [config.lr * factor for factor in GRID] for name, config in configs.items()}
    for step in range(MOST_STEPS_OUT + 1):
        trials = {
            (name, rate): Trial(
                folder / "tuning" / name / f"lr-{rate:.3g}",
                replace(config, lr=float(f"{rate:.3g}")),
                is_tuning=True,
            )
            for name, config in configs.items()
            for rate in rates[name]
        }
        done = _run_all(list(trials.values()), jobs, progress, "trials of the grid")
        found = {
            name: sorted((done[trials[name, rate].folder] for rate in rates[name]), key=_rate)
            for name in configs
        }
        if step == MOST_STEPS_OUT or not sum(_grow(rates[n], found[n]) for n in configs):
            break
    return found


def _grow(rates: list[float], results: Sequence[Result]) -> bool:
    """Add a learning rate beyond the edge where the best lies there."""
    best = best_rate(results)
    for edge, factor in ((results[0].lr, 0.1), (results[-1].lr, 10.0)):
        if math.isclose(best, edge):
            rates.append(edge * factor)
            return True
    return False


def _rate(result: Result) -> float:
    return result.lr


def _run_all(
    trials: Sequence[Trial], jobs: int, progress: Progress, what: str
) -> dict[Path, Result]:
    """Results by folder; what is stored is read, the rest is run, `jobs` at a time."""
    found = {trial.folder: read_result(trial) for trial in trials}
    missing = [trial for trial in trials if found[trial.folder] is None]
    if missing and len(missing) < len(trials):
        progress.note(f"{len(trials) - len(missing)} of {len(trials)} {what} are there already")
    for trial, result in progress.track(_finished(missing, jobs), what, len(missing)):
        found[trial.folder] = result
        progress.note(_line(trial, result))
    return {folder: result for folder, result in found.items() if result is not None}


def _finished(trials: Sequence[Trial], jobs: int) -> Iterator[tuple[Trial, Result]]:
    """Trials with their results, as they finish."""
    if jobs == 1:
        for trial in trials:
            yield trial, run_trial(trial)
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with process_pool(jobs) as pool:
        waiting = {pool.submit(run_trial, trial, threads): trial for trial in trials}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _line(trial: Trial, result: Result) -> str:
    name = f"{result.method}, seed {result.seed}"
    if trial.is_tuning:
        found = "diverged" if result.validation is None else f"validation {result.validation:.1f} %"
        return f"{name}, lr {result.lr:.3g}: {found}"
    assert result.accuracy is not None
    figures = result.accuracy.to_dict()
    shown = ", ".join(
        f"{key} {figures[key]:.1f}"
        for key in ("local", "base", "novel")
        if figures[key] is not None
    )
    return f"{name}, lr {result.lr:.3g}: {shown} ({result.seconds:.0f} s of training)"


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
