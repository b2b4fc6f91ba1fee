"""Comparisons: what is run and in which order, what is chosen, what it will cost."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from pfedmma_deploy.config import TrainConfig
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.progress import Silent
from pfedmma_deploy.report import work
from pfedmma_deploy.report.compare import best_rate, compare
from pfedmma_deploy.report.trials import Criterion, Result, Trial, Validation
from pfedmma_deploy.report.work import Work
from tests.federated.conftest import config, one_thread, sites
from tests.report.comparisons import options, result

__all__ = ["config", "one_thread", "sites"]


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[Trial]:
    """Trials are written down instead of run.

    The higher the rate up to 0.5, the better on own classes; above 0.01 other classes suffer.
    """
    seen: list[Trial] = []

    def fake(trial: Trial, threads: int | None = None) -> Result:
        seen.append(trial)
        rate = trial.config.lr
        found = Validation(rate if rate < 0.5 else 0.0, 0.01 if rate <= 0.01 else 0.001)
        return result(
            trial.config.method,
            trial.config.seed,
            rate,
            validation=None if trial.criterion is None else found,
            wall_seconds=60.0 if trial.config.method == "pfedmma" else 30.0,
        )

    monkeypatch.setattr(work, "run_trial", fake)
    return seen


def test_every_method_runs_with_a_seed_before_the_next(trials: list[Trial], tmp_path: Path) -> None:
    found = compare(["pfedmma", "zero-shot"], [0, 1], options, tmp_path)
    wanted = [f"{m}/seed-{s}" for s in (0, 1) for m in ("pfedmma", "zero-shot")]
    assert [str(t.folder.relative_to(tmp_path / "trials")) for t in trials] == wanted
    assert list(found.results) == ["pfedmma", "zero-shot"]
    assert [one.seed for one in found.results["zero-shot"]] == [0, 1]


def test_the_grid_grows_until_the_best_is_inside(trials: list[Trial], tmp_path: Path) -> None:
    """0.001, 0.01, 0.1: 0.1 is best and on the edge, so 1.0 is tried, and found to be worse."""
    found = compare(["pfedmma"], [3, 4], options, tmp_path, tune=True, criterion="own")
    assert [one.lr for one in found.tuning["pfedmma"]] == [0.001, 0.01, 0.1, 1.0]
    tuned = [trial for trial in trials if trial.criterion == "own"]
    assert {trial.config.seed for trial in tuned} == {3}
    assert [t.config.lr for t in trials if t.criterion is None] == [0.1, 0.1]


def test_a_rate_that_forgets_is_not_chosen(trials: list[Trial], tmp_path: Path) -> None:
    """Of 0.001, 0.01 and 0.1 the last is best on own classes, the second by the default."""
    found = compare(["pfedmma"], [3], options, tmp_path, tune=True)
    assert [one.lr for one in found.tuning["pfedmma"]] == [0.001, 0.01, 0.1]
    assert [t.config.lr for t in trials if t.criterion is None] == [0.01]
    assert found.criterion == "harmonic"


def test_what_cannot_learn_is_not_tuned(trials: list[Trial], tmp_path: Path) -> None:
    found = compare(["zero-shot"], [0], options, tmp_path, tune=True)
    assert found.tuning == {}
    assert len(trials) == 1


@pytest.mark.parametrize("criterion", ["harmonic", "own"])
def test_of_equal_rates_the_smallest_is_taken(criterion: Criterion) -> None:
    equal = Validation(70.0, 60.0)
    results = [result(lr=rate, validation=equal) for rate in (0.1, 0.01, 1.0)]
    assert best_rate(results, criterion) == 0.01


def test_the_cost_is_known_after_the_first_trial(trials: list[Trial], tmp_path: Path) -> None:
    """pfedmma takes a minute, so the other five are taken for five; zero-shot takes half of one."""
    told = Notes()
    compare(["pfedmma", "zero-shot"], [0, 1, 2], options, tmp_path, progress=told)
    assert told.notes[0] == "6 trials to run; how long that takes is known after the first one"
    assert told.notes[2] == (
        "5 trials to run: about 5 minutes, judged by 1 that is done. Stop with Ctrl-C at any time, "
        "and repeat the command to go on"
    )
    assert told.notes[4].startswith("4 trials to run: about 3 minutes, judged by 2 that are done.")
    assert len([note for note in told.notes if "to run" in note]) == 3


def test_the_cost_covers_what_comes_after_the_grid(trials: list[Trial], tmp_path: Path) -> None:
    """Three of the grid and eight after it; then 4 of a minute and 4 of another method, unknown."""
    told = Notes()
    compare(["pfedmma", "zero-shot"], [0, 1, 2, 3], options, tmp_path, tune=True, progress=told)
    costs = [note.split(", judged")[0] for note in told.notes if "to run" in note]
    assert costs == [
        "11 trials to run; how long that takes is known after the first one",
        "10 trials to run: about 10 minutes",
        "8 trials to run: about 8 minutes",
        "6 trials to run: about 4 minutes",
    ]


def test_two_jobs_take_half_as_long() -> None:
    """A minute each for two trials of pfedmma, half a minute for two of zero-shot: 3 of 2 jobs."""
    done = {
        Path("a"): ("pfedmma", 50.0),
        Path("b"): ("pfedmma", 70.0),
        Path("c"): ("zero-shot", 30),
    }
    queue = Work(2, Silent(), done)
    ahead = [Trial(Path(), options(name, 0)) for name in ("pfedmma", "zero-shot") * 2]
    assert queue.estimate(ahead).startswith(
        "4 trials to run: about 2 minutes, judged by 3 that are"
    )


def test_stopped_early_it_says_which_seeds_are_complete(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Seven trials are done: both methods have three seeds, and pfedmma a fourth."""

    def fake(trial: Trial, threads: int | None = None) -> Result:
        if trial.config.method == "zero-shot" and trial.config.seed == 3:
            raise KeyboardInterrupt
        trial.folder.mkdir(parents=True)
        (trial.folder / "result.json").touch()
        return result(trial.config.method, trial.config.seed)

    monkeypatch.setattr(work, "run_trial", fake)
    told = Notes()
    with pytest.raises(KeyboardInterrupt):
        compare(["pfedmma", "zero-shot"], [0, 1, 2, 3, 4], options, tmp_path, progress=told)
    assert told.notes[-1] == "Every method has these seeds: --seeds 0,1,2 makes their tables"


@pytest.mark.parametrize(
    ("methods", "seeds", "message"),
    [
        (["pfedmma", "pfedmma"], [0], "the method pfedmma is named twice"),
        (["pfedmma"], [0, 0], "the seed 0 is named twice"),
        (["pfedmma"], [], "name at least one seed"),
        (["pfedma"], [0], "no method is called 'pfedma'; did you mean 'pfedmma'?"),
    ],
)
def test_mistakes(methods: list[str], seeds: list[int], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        compare(methods, seeds, options, tmp_path)


def test_what_the_others_are_held_against(trials: list[Trial], tmp_path: Path) -> None:
    assert compare(["zero-shot", "pfedmma"], [0], options, tmp_path).against == "zero-shot"
    found = compare(["zero-shot", "pfedmma"], [0], options, tmp_path, against="pfedmma")
    assert found.against == "pfedmma"
    message = (
        "--against must be one of the methods that are compared, pfedmma, zero-shot, not 'pfedma'; "
        "did you mean 'pfedmma'?"
    )
    with pytest.raises(UsageError, match=re.escape(message)):
        compare(["pfedmma", "zero-shot"], [0], options, tmp_path, against="pfedma")


def test_an_unknown_criterion(tmp_path: Path) -> None:
    message = "criterion must be one of harmonic, own, not 'harmonc'; did you mean 'harmonic'?"
    with pytest.raises(UsageError, match=re.escape(message)):
        compare(["pfedmma"], [0], options, tmp_path, criterion="harmonc")  # type: ignore[arg-type]


@pytest.mark.slow
def test_jobs_of_their_own_give_the_same(tmp_path: Path, config: TrainConfig) -> None:
    def configure(method: str, seed: int) -> TrainConfig:
        return replace(config, method=method, seed=seed, backbone="pfedmma-tiny", pretrained=None)

    both = compare(["pfedmma"], [0, 1], configure, tmp_path / "two", jobs=2)
    alone = compare(["pfedmma"], [0], configure, tmp_path / "one")
    assert both.results["pfedmma"][0].clients == alone.results["pfedmma"][0].clients
