"""Trials one after the other or several at a time, with what they will cost said beforehand."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from pfedmma_deploy.progress import Progress
from pfedmma_deploy.report.trials import Result, Trial, read_result, run_trial
from pfedmma_deploy.system import process_pool


@dataclass
class Work:
    """Runs trials, and tells beforehand how long it will take."""

    jobs: int
    progress: Progress
    seconds: dict[Path, tuple[str, float]] = field(default_factory=dict)
    """Method and duration of the trials that are done, by folder: what the estimate is made of."""

    def run(self, trials: Sequence[Trial], what: str, later: Sequence[Trial] = ()) -> list[Result]:
        """A result for each; what is stored is read, the rest is run, `jobs` at a time.

        The estimate covers what is to be run `later`, too.
        """
        found = {trial.folder: read_result(trial) for trial in trials}
        for trial in trials:
            self._measure(trial, found[trial.folder])
        missing = [trial for trial in trials if found[trial.folder] is None]
        if missing and len(missing) < len(trials):
            there = len(trials) - len(missing)
            self.progress.note(f"{there} of {len(trials)} {what} are there already")
        try:
            for trial, result in self._track(missing, what, later):
                found[trial.folder] = result
        except KeyboardInterrupt:
            self._tell_complete(trials)
            raise
        done = (found[trial.folder] for trial in trials)
        return [result for result in done if result is not None]

    def _track(
        self, missing: Sequence[Trial], what: str, later: Sequence[Trial]
    ) -> Iterator[tuple[Trial, Result]]:
        """Trials with their results, as they finish; told are they and the time that is left."""
        ahead = [*missing, *later]
        if missing:
            self.progress.note(self.estimate(ahead))
        for trial, result in self.progress.track(self._finished(missing), what, len(missing)):
            self.progress.note(_line(trial, result))
            ahead.remove(trial)
            known = {method for method, _ in self.seconds.values()}
            self._measure(trial, result)
            # Told again once there is anything to judge by, and once every method was measured.
            is_better = not known or _methods(ahead) - known == {trial.config.method}
            if ahead and is_better:
                self.progress.note(self.estimate(ahead))
            yield trial, result

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

    def _tell_complete(self, trials: Sequence[Trial]) -> None:
        """After Ctrl-C: of which seeds there are tables already."""
        is_complete: dict[int, bool] = {}
        for trial in trials:
            before = is_complete.get(trial.config.seed, True)
            is_complete[trial.config.seed] = before and trial.is_stored and not trial.criterion
        seeds = [str(seed) for seed, complete in is_complete.items() if complete]
        if seeds:
            listed = ",".join(seeds)
            self.progress.note(f"Every method has these seeds: --seeds {listed} makes their tables")

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
    data = Path(trial.config.data).name
    name = f"{data}: {result.method}, seed {result.seed}, lr {result.lr:.3g}"
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
