"""Rates of several contestants measured in turns, so that a busy machine disturbs all alike.

Every round gives each contestant one short window; the order turns around from round to round
(A B, B A, ...), and a ratio is taken within each round before the median over the rounds. What
other processes take from the machine for a while is then taken from both sides of a ratio.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pfedmma_deploy.progress import Progress, Silent

Clock = Callable[[], float]
FEW_CALLS = 4
"""A window that holds fewer calls than this spends none of them on warming up."""


@dataclass(frozen=True)
class Contestant:
    """Something to be timed."""

    name: str
    run: Callable[[], object]
    """One call; it returns when its result is there."""
    items: float
    """What one call does, in the unit of the rate, such as images."""


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float


@dataclass
class Windows:
    """What was seen of one contestant."""

    rates: list[float] = field(default_factory=list)
    """Items per second, one per round."""
    calls: list[float] = field(default_factory=list)
    """Seconds of every timed call."""


def run_rounds(
    contestants: Sequence[Contestant],
    rounds: int,
    seconds: float,
    *,
    clock: Clock = time.perf_counter,
    progress: Progress | None = None,
    label: str = "rounds",
) -> dict[str, Windows]:
    """Time all contestants in turns.

    Args:
        contestants: with names of their own.
        rounds: windows for each.
        seconds: length of a window; it holds at least one call.
        clock: tells seconds.
        progress: is told of the windows.
        label: what they are, in the plural.

    Returns:
        The windows by name, in the order of `contestants`.
    """
    seen = {contestant.name: Windows() for contestant in contestants}
    # Turned around every time, so that nobody always runs behind the one that heats the processor.
    order: list[Contestant] = []
    for number in range(rounds):
        order += contestants if number % 2 == 0 else reversed(contestants)
    for contestant in (progress or Silent()).track(order, label, len(order)):
        _run_window(contestant, seen[contestant.name], seconds, clock)
    return seen


def _run_window(contestant: Contestant, windows: Windows, seconds: float, clock: Clock) -> None:
    # Caches and thread pools hold the previous contestant's state. A long call outlasts that.
    if not windows.calls or windows.calls[-1] * FEW_CALLS < seconds:
        contestant.run()
    start = before = clock()
    count = 0
    while count == 0 or before - start < seconds:
        contestant.run()
        after = clock()
        windows.calls.append(after - before)
        before, count = after, count + 1
    windows.rates.append(count * contestant.items / (before - start))


def ratio(ours: Windows, theirs: Windows) -> Spread:
    """How many times the rate of `theirs` is reached, round by round."""
    return spread([a / b for a, b in zip(ours.rates, theirs.rates, strict=True)])


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of one value or more."""
    return Spread(percentile(values, 50), percentile(values, 25), percentile(values, 75))


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the values lie, linear between neighbours."""
    return float(np.percentile(values, percent))
