"""Means over seeds and how sure they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# 0.975 quantiles of Student's t by degrees of freedom (any table of the t distribution).
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL = 1.960


@dataclass(frozen=True)
class Spread:
    """A figure over several seeds."""

    mean: float
    deviation: float | None
    """Sample standard deviation; None of a single seed."""
    interval: float | None
    """Half the width of the 95 % interval of the mean, by Student's t; None of a single seed."""


def spread(values: Sequence[float | None]) -> Spread | None:
    """Mean, deviation and 95 % interval; None where a value is not measured."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    if len(known) == 1:
        return Spread(known[0], None, None)
    deviation = statistics.stdev(known)
    degrees = len(known) - 1
    t = _T[degrees - 1] if degrees <= len(_T) else _NORMAL
    return Spread(statistics.fmean(known), deviation, t * deviation / math.sqrt(len(known)))
