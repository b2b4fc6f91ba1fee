"""`pfedmma compare`: several methods, several seeds, one protocol, one budget.

    DIR/trials/<method>/seed-<s>/      run/ and result.json
    DIR/tuning/<method>/lr-<lr>/       the same for one learning rate of the grid
    DIR/compare.md .csv .json .png     written again from what is there

A trial that has its result is not run again; one that was cut off is continued. Trials run seed by
seed, all methods with the first one before any with the second: stopped early, every method has the
same number of seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pfedmma_deploy.config import TrainConfig
from pfedmma_deploy.errors import UsageError, nearest
from pfedmma_deploy.methods.registry import get_method
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.report.trials import (
    Criterion,
    Result,
    Trial,
    require_criterion,
)
from pfedmma_deploy.report.work import Work

Configure = Callable[[str, int], TrainConfig]
"""(method, seed) -> the configuration of a run."""
GRID: Final = (0.1, 1.0, 10.0)
"""Learning rates that are tried, as multiples of the configured one."""
MOST_STEPS_OUT: Final = 2
"""How often the grid grows by a factor of ten where the best lies on its edge."""


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
    criterion: Criterion
    """What the learning rates were chosen by."""
    against: str
    """The method that the others are held against."""


def compare(
    methods: Sequence[str],
    seeds: Sequence[int],
    configure: Configure,
    folder: Path,
    *,
    tune: bool = False,
    criterion: Criterion = "harmonic",
    against: str | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Comparison:
    """Run what is missing of a comparison and collect all of it.

    Args:
        methods: names of methods.
        seeds: each is one repetition: another partition of the data, another initial state.
        configure: its data, backbone and budget must not depend on the method.
        folder: where trials and results are kept.
        tune: choose each method's learning rate on validation images first, with the first seed.
        criterion: what the best of the learning rates is.
        against: the method that the others are held against; None takes the first.
        jobs: trials at the same time, each in a process of its own.
        progress: is told beforehand how many minutes it will take, and then of each trial.

    Raises:
        UsageError: unknown or repeated methods or seeds, an unknown criterion or reference, or a
            folder made with other options.
    """
    against = require_lists(methods, seeds, against, jobs)
    require_criterion(criterion)
    trials = plan(methods, seeds, configure, folder)
    work = Work(jobs, progress or Silent())
    tuning: dict[str, list[Result]] = {}
    if tune:
        first = [trial.config for trial in trials[: len(methods)]]
        learning = [config for config in first if get_method(config.method).is_trained]
        later = [trial for trial in trials if not trial.is_stored]
        tuning = _tune(learning, folder, criterion, work, later)
        trials = [_with_rate(trial, tuning, criterion) for trial in trials]
    results = by_method(work.run(trials, "trials"))
    return Comparison(folder, trials[0].config, results, tuning, criterion, against)


def best_rate(results: Sequence[Result], criterion: Criterion) -> float:
    """The learning rate that the criterion finds best; the smallest of equals."""

    def rank(one: Result) -> tuple[float, float]:
        found = 0.0 if one.validation is None else one.validation.by(criterion)
        return found, -one.lr

    return max(results, key=rank).lr


def plan(
    methods: Sequence[str],
    seeds: Sequence[int],
    configure: Configure,
    folder: Path,
) -> list[Trial]:
    """Every method with the first seed, then every method with the second, and so on."""
    trials = []
    for seed in seeds:
        for name in methods:
            place = folder / "trials" / name / f"seed-{seed}"
            trials.append(Trial(place, configure(name, seed)))
    return trials


def _with_rate(trial: Trial, tuning: Mapping[str, Sequence[Result]], criterion: Criterion) -> Trial:
    """The trial with the learning rate that its method was found to like best."""
    grid = tuning.get(trial.config.method)
    if grid is None:
        return trial
    return replace(trial, config=replace(trial.config, lr=best_rate(grid, criterion)))


def _tune(
    configs: Sequence[TrainConfig],
    folder: Path,
    criterion: Criterion,
    work: Work,
    later: Sequence[Trial],
) -> dict[str, list[Result]]:
    """The grid of every method, grown where its best lies on the edge; ascending rates."""
    rates = {config.method: [config.lr * factor for factor in GRID] for config in configs}
    found: dict[str, list[Result]] = {}
    for _ in range(MOST_STEPS_OUT + 1):
        trials = []
        for config in configs:
            for rate in sorted(rates[config.method]):
                place = folder / "tuning" / config.method / f"lr-{rate:.3g}"
                tuned = replace(config, lr=float(f"{rate:.3g}"))
                trials.append(Trial(place, tuned, criterion))
        found = by_method(work.run(trials, "trials of the grid", later))
        is_settled = True
        for name, results in found.items():
            best = best_rate(results, criterion)
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


def by_method(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results by method, both in the order in which they come."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.method, []).append(result)
    return found


def require_lists(
    methods: Sequence[str], seeds: Sequence[int], against: str | None, jobs: int
) -> str:
    """The method that the others are held against. Raises `UsageError` as `compare` says."""
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
    if against is not None and against not in methods:
        raise UsageError(
            f"--against must be one of the methods that are compared, {', '.join(methods)}, not "
            f"{against!r}{nearest(against, methods)}"
        )
    return against or methods[0]
