"""What a comparison over seeds establishes: intervals, paired differences, regions of confidence.

A seed is one repetition of everything that is random: partition, shots, initial state. Statements
here are about repetitions on the same data set and backbone, and about nothing else.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Final

import numpy as np

CONFIDENCE: Final = 0.95
MARKS: Final = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
"""What stands behind a difference whose corrected p is at most the number."""
ESTABLISHED: Final = 0.05
"""A difference with a corrected p above this may as well be chance."""

_NOTHING: Final = 1e-9
"""Points: no accuracy is known so exactly, what is less comes of rounding."""

Figure = dict[str, float | None]
"""Of several seeds `mean`, sample `deviation`, and half the 95 % `interval` by Student's t.

The last two are None of a single seed.
"""


@dataclass(frozen=True, slots=True)
class Difference:
    """One method's accuracy minus another's, in points, paired by seed."""

    mean: float
    interval: float | None
    """Half the 95 % interval of the mean by Student's t, not corrected; None of a single seed."""
    p: float | None
    """Of Student's paired t test, two-sided; where all n seeds differ alike, which it cannot judge,
    of the sign test: 2^(1-n). None of a single seed."""
    corrected_p: float | None = None
    """By `holm`, over the rows of the same column."""

    @property
    def is_established(self) -> bool:
        """Whether chance is an unlikely explanation; never of a single seed."""
        return self.corrected_p is not None and self.corrected_p <= ESTABLISHED

    @property
    def mark(self) -> str:
        """One to three stars, or nothing."""
        if self.corrected_p is None:
            return ""
        return next((mark for most, mark in MARKS if self.corrected_p <= most), "")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with `is_established` and `mark`."""
        return {**asdict(self), "is_established": self.is_established, "mark": self.mark}


def spread(values: Sequence[float | None]) -> Figure | None:
    """Mean, deviation and 95 % interval; None where a value is not measured."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    if len(known) == 1:
        return {"mean": known[0], "deviation": None, "interval": None}
    deviation = statistics.stdev(known)
    interval = critical_value(len(known) - 1) * deviation / math.sqrt(len(known))
    return {"mean": statistics.fmean(known), "deviation": deviation, "interval": interval}


def differences(
    rows: Mapping[str, Sequence[float | None]], reference: Sequence[float | None]
) -> dict[str, Difference | None]:
    """Each row's mean difference from the reference, paired by seed, with Holm's correction.

    The rows are one family: the chance that any of them is called established by mistake is at most
    5 %. So Demšar (JMLR 7, 2006, section 3.2.2) recommends it for many classifiers beside one.

    Args:
        rows: by name, one value per seed; a seed that lacks it makes the row None.
        reference: the values of the same seeds that every row is held against.
    """
    found = {name: paired_difference(values, reference) for name, values in rows.items()}
    tested = [one for one in found.values() if one is not None and one.p is not None]
    corrected = iter(holm([one.p for one in tested if one.p is not None]))
    result: dict[str, Difference | None] = {}
    for name, one in found.items():
        if one is not None and one.p is not None:
            one = Difference(one.mean, one.interval, one.p, next(corrected))
        result[name] = one
    return result


def paired_difference(
    values: Sequence[float | None], reference: Sequence[float | None]
) -> Difference | None:
    """Values minus reference, seed by seed; None where one is not measured, or there is no seed."""
    changes = []
    for value, other in zip(values, reference, strict=True):
        if value is None or other is None:
            return None
        changes.append(value - other)
    found = spread(changes)
    if found is None:
        return None
    mean, deviation = found["mean"], found["deviation"]
    assert mean is not None
    if deviation is None:
        return Difference(mean, None, None)
    if deviation < _NOTHING:
        # Every seed says the same, so t has no value: what is left is how often signs agree.
        return Difference(mean, 0.0, 1.0 if abs(mean) < _NOTHING else 2.0 ** (1 - len(changes)))
    t = mean / (deviation / math.sqrt(len(changes)))
    return Difference(mean, found["interval"], 1 - share_within(abs(t), len(changes) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected p values in the same order (Holm, Scandinavian Journal of Statistics 6, 1979).

    The smallest of m is multiplied by m, the next by m - 1, and so on; none is smaller than one
    before it, nor larger than 1.
    """
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, p_values[place] * (len(p_values) - rank))
        corrected[place] = min(1.0, largest)
    return corrected


def share_within(t: float, degrees: int) -> float:
    """P(|T| <= t) of Student's t with that many degrees of freedom, at least one; t >= 0.

    The exact finite series for whole degrees (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    angle = math.atan(t / math.sqrt(degrees))
    cos2 = math.cos(angle) ** 2
    odd = degrees % 2
    if degrees == 1:
        return 2 * angle / math.pi
    term = math.cos(angle) if odd else 1.0
    total = term
    for k in range(2 + odd, degrees - 1, 2):
        term *= cos2 * (k - 1) / k
        total += term
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


@cache
def critical_value(degrees: int) -> float:
    """The t within which 95 % of Student's distribution lies: 12.706 of one degree of freedom."""
    low, high = 1.9, 13.0
    # Halved until nothing is left between the two that a double could tell.
    for _ in range(60):
        middle = (low + high) / 2
        if share_within(middle, degrees) < CONFIDENCE:
            low = middle
        else:
            high = middle
    return high


@dataclass(frozen=True, slots=True)
class Ellipse:
    """Where the mean of two figures lies with 95 %."""

    x: float
    y: float
    width: float
    """Whole axes, in the units of the figures; the second may be 0."""
    height: float
    angle: float
    """Of the first axis, in degrees, counter-clockwise from x."""

    @property
    def reach(self) -> tuple[float, float]:
        """Half of the ellipse's extent along x and along y."""
        turn = math.radians(self.angle)
        a, b = self.width / 2, self.height / 2
        along_x = math.hypot(a * math.cos(turn), b * math.sin(turn))
        return along_x, math.hypot(a * math.sin(turn), b * math.cos(turn))


def mean_ellipse(x: Sequence[float], y: Sequence[float]) -> Ellipse | None:
    """The 95 % confidence ellipse of the mean of n pairs (Hotelling 1931); None of fewer than 3.

    (m - mu)' S^-1 (m - mu) <= 2 (n-1) / (n (n-2)) F, with F the 0.95 quantile of the F
    distribution of 2 and n - 2 degrees of freedom, which is (n-2) / 2 * (0.05^(-2/(n-2)) - 1).
    """
    n = len(x)
    if n < 3:
        return None
    radius2 = (n - 1) / n * ((1 - CONFIDENCE) ** (-2 / (n - 2)) - 1)
    values, directions = np.linalg.eigh(np.cov(np.array([x, y], dtype=np.float64)))
    long, short = np.sqrt(radius2 * np.clip(values[::-1], 0, None))
    angle = math.degrees(math.atan2(directions[1, 1], directions[0, 1]))
    return Ellipse(
        statistics.fmean(x), statistics.fmean(y), 2 * float(long), 2 * float(short), angle
    )
