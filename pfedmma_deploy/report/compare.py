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
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Final

from pfedmma_deploy.config import TrainConfig
from pfedmma_deploy.errors import UsageError, nearest
from pfedmma_deploy.methods.registry import get_method
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.report.trials import (
    RESULT,
    Criterion,
    Result,
    Trial,
    read_result,
    require_criterion,
    run_trial,
)
from pfedmma_deploy.system import process_pool

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
    configure: Callable[[str, int], TrainConfig],
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
        configure: (method, seed) -> the run's configuration; data, backbone and budget must not
            depend on the method.
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
    _require_lists(methods, seeds, jobs)
    against = methods[0] if against is None else against
    if against not in methods:
        raise UsageError(
            f"--against must be one of the methods that are compared, {', '.join(methods)}, not "
            f"{against!r}{nearest(against, methods)}"
        )
    require_criterion(criterion)
    trials = _trials(methods, seeds, configure, folder)
    work = _Work(jobs, progress or Silent())
    tuning: dict[str, list[Result]] = {}
    if tune:
        first = [trial.config for trial in trials[: len(methods)]]
        learning = [config for config in first if get_method(config.method).is_trained]
        later = [trial for trial in trials if not trial.is_stored]
        tuning = _tune(learning, folder, criterion, work, later)
        trials = [_with_rate(trial, tuning, criterion) for trial in trials]
    results = work.run(trials, "trials")
    return Comparison(folder, trials[0].config, results, tuning, criterion, against)


def best_rate(results: Sequence[Result], criterion: Criterion) -> float:
    """The learning rate that the criterion finds best; the smallest of equals."""

    def rank(one: Result) -> tuple[float, float]:
        found = 0.0 if one.validation is None else one.validation.by(criterion)
        return found, -one.lr

    return max(results, key=rank).lr


def complete_seeds(folder: Path, methods: Sequence[str], seeds: Sequence[int]) -> list[int]:
    """Those of the seeds that every method in the comparison's folder has a result of."""
    complete = []
    for seed in seeds:
        places = [_place(folder, name, seed) for name in methods]
        if all((place / RESULT).exists() for place in places):
            complete.append(seed)
    return complete


def _place(folder: Path, method: str, seed: int) -> Path:
    return folder / "trials" / method / f"seed-{seed}"


def _trials(
    methods: Sequence[str],
    seeds: Sequence[int],
    configure: Callable[[str, int], TrainConfig],
    folder: Path,
) -> list[Trial]:
    """Every method with the first seed, then every method with the second, and so on."""
    trials = []
    for seed in seeds:
        for name in methods:
            trials.append(Trial(_place(folder, name, seed), configure(name, seed)))
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
    work: _Work,
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
        found = work.run(trials, "trials of the grid", later)
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


@dataclass
class _Work:
    """Runs trials, and tells beforehand how long it will take."""

    jobs: int
    progress: Progress
    seconds: dict[Path, tuple[str, float]] = field(default_factory=dict)
    """Method and duration of the trials that are done, by folder: what the estimate is made of."""

    def run(
        self, trials: Sequence[Trial], what: str, later: Sequence[Trial] = ()
    ) -> dict[str, list[Result]]:
        """Results by method; what is stored is read, the rest is run, `jobs` at a time.

        The estimate covers what is to be run `later`, too.
        """
        found = {trial.folder: read_result(trial) for trial in trials}
        for trial in trials:
            self._measure(trial, found[trial.folder])
        missing = [trial for trial in trials if found[trial.folder] is None]
        if missing and len(missing) < len(trials):
            there = len(trials) - len(missing)
            self.progress.note(f"{there} of {len(trials)} {what} are there already")
        ahead = [*missing, *later]
        if missing:
            self.progress.note(self.estimate(ahead))
        for trial, result in self.progress.track(self._finished(missing), what, len(missing)):
            found[trial.folder] = result
            self.progress.note(_line(trial, result))
            ahead.remove(trial)
            known = self._known_methods()
            self._measure(trial, result)
            # Told again once there is anything to judge by, and once every method was measured.
            is_better = not known or _methods(ahead) - known == {trial.config.method}
            if ahead and is_better:
                self.progress.note(self.estimate(ahead))
        results: dict[str, list[Result]] = {}
        for trial in trials:
            done = found[trial.folder]
            assert done is not None
            results.setdefault(trial.config.method, []).append(done)
        return results

    def estimate(self, trials: Sequence[Trial]) -> str:
        """A sentence: how many trials are to be run, and how many minutes that takes.

        A method that was never measured counts as the mean of the others.
        """
        count = f"{len(trials)} trial{'s' * (len(trials) != 1)} to run"
        if not self.seconds:
            return f"{count}; how long that takes is known after the first one"
        by_method: dict[str, list[float]] = {}
        for method, taken in self.seconds.values():
            by_method.setdefault(method, []).append(taken)
        means = {method: fmean(taken) for method, taken in by_method.items()}
        typical = fmean(means.values())
        seconds = sum(means.get(trial.config.method, typical) for trial in trials)
        minutes = seconds / 60 / min(self.jobs, len(trials))
        about = f"{minutes:.0f} minutes" if minutes >= 1.5 else "a minute"
        known = len(self.seconds)
        return (
            f"{count}: about {about}, judged by {known} that {'is' if known == 1 else 'are'} done. "
            "Stop with Ctrl-C at any time, and repeat the command to go on"
        )

    def _known_methods(self) -> set[str]:
        return {method for method, _ in self.seconds.values()}

    def _measure(self, trial: Trial, result: Result | None) -> None:
        if result is not None and result.wall_seconds is not None:
            self.seconds[trial.folder] = (result.method, result.wall_seconds)

    def _finished(self, trials: Sequence[Trial]) -> Iterator[tuple[Trial, Result]]:
        """Trials with their results, as they finish."""
        if self.jobs == 1:
            for trial in trials:
                yield trial, run_trial(trial)
            return
        # Jobs that each use all cores would wait for each other.
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        with process_pool(self.jobs) as pool:
            waiting = {pool.submit(run_trial, trial, threads): trial for trial in trials}
            try:
                for future in as_completed(waiting):
                    yield waiting[future], future.result()
            except BaseException:
                # After an error or Ctrl-C nothing new begins; what runs is continued next time.
                pool.shutdown(cancel_futures=True)
                raise


def _methods(trials: Sequence[Trial]) -> set[str]:
    return {trial.config.method for trial in trials}


def _line(trial: Trial, result: Result) -> str:
    name = f"{result.method}, seed {result.seed}, lr {result.lr:.3g}"
    if trial.criterion is not None:
        found = result.validation
        if found is None:
            return f"{name}: diverged"
        others = "" if found.others is None else f", other classes {found.others:.1f}"
        return f"{name}: validation in %: own classes {found.own:.1f}{others}"
    assert result.accuracy is not None
    shown = []
    for key, figure in result.accuracy.to_dict().items():
        if key in ("local", "base", "novel") and figure is not None:
            shown.append(f"{key} {figure:.1f}")
    return f"{name}: {', '.join(shown)} ({result.seconds:.0f} s of training)"


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
