"""Recorded answers against what a client's own images looked like when it was calibrated.

Two means are compared with those of its validation images by Welch's test: the score of being
known, which falls where images are of another kind, and the probability of the answer, which falls
where they are harder. All tests together alarm by chance in at most the share that was asked.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pfedmma_deploy.calibration import FEWEST, Array, Calibration, student_quantile
from pfedmma_deploy.runtime.certainty import UNKNOWN
from pfedmma_deploy.runtime.manifest import Manifest
from pfedmma_deploy.runtime.record import Entry

CHANCE = 0.02
"""Of an alarm though nothing has changed, over all clients."""


@dataclass(frozen=True)
class Drift:
    """One mean, now and when the client was calibrated."""

    now: float
    reference: float
    t: float
    """Their difference in standard errors."""
    limit: float
    """From which it counts."""

    @property
    def is_alarm(self) -> bool:
        """Whether the difference is too large for chance."""
        return abs(self.t) > self.limit


@dataclass(frozen=True)
class ClientState:
    """What a client's recorded answers look like."""

    client: str
    answers: int
    unknown: float
    """Share of answers that are unknown, in percent."""
    classes: dict[str, float]
    """Share of each answer in percent, the most frequent first."""
    known: Drift | None
    """Of the score of being known; None where client or record do not have `FEWEST` images."""
    confidence: Drift | None
    """Of the probability of the answer."""

    @property
    def is_alarm(self) -> bool:
        """Whether one of the two has changed."""
        return any(one is not None and one.is_alarm for one in (self.known, self.confidence))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "alarm": self.is_alarm}


def monitor(
    entries: Iterable[Entry], manifest: Manifest, chance: float = CHANCE
) -> list[ClientState]:
    """The state of every client that has answered, in the bundle's order.

    Answers among typed names are left out: the reference is of the bundle's own.

    Args:
        entries: recorded answers.
        manifest: of the bundle that gave them.
        chance: of an alarm though nothing has changed.
    """
    rows: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry["terms"]["classes"] is None:
            rows.setdefault(entry["client"], []).append(entry)
    clients = [info for info in manifest.clients if info.id in rows]
    found = []
    for info in clients:
        own = rows[info.id]
        counts = Counter(str(entry["answer"]) for entry in own)
        known = confidence = None
        if info.calibration is not None:
            level = chance / (2 * len(clients))
            known, confidence = _drifts(own, info.calibration, level)
        found.append(
            ClientState(
                client=info.id,
                answers=len(own),
                unknown=100 * counts[UNKNOWN] / len(own),
                classes={name: 100 * n / len(own) for name, n in counts.most_common()},
                known=known,
                confidence=confidence,
            )
        )
    return found


def _drifts(
    entries: list[Entry], reference: Calibration, level: float
) -> tuple[Drift | None, Drift | None]:
    scores = np.array([entry["known"] for entry in entries], np.float64)
    best = np.array([max(entry["probabilities"].values()) for entry in entries], np.float64)
    images = reference.images
    return (
        welch(scores, reference.known_mean, reference.known_deviation, images, level),
        welch(best, reference.confidence_mean, reference.confidence_deviation, images, level),
    )


def welch(values: Array, mean: float, deviation: float, images: int, level: float) -> Drift | None:
    """Welch's test of two means (1947); None where either side has fewer than `FEWEST` images.

    Args:
        values: what is compared now.
        mean: of the reference.
        deviation: its standard deviation.
        images: how many it is of.
        level: chance of an alarm though both are alike.
    """
    count = len(values)
    if min(count, images) < FEWEST:
        return None
    now, own, other = float(values.mean()), float(values.var(ddof=1)) / count, deviation**2 / images
    error = math.sqrt(own + other)
    if error == 0:
        return Drift(now, mean, 0.0 if now == mean else math.copysign(1e9, now - mean), 1.0)
    freedom = (own + other) ** 2 / (own**2 / (count - 1) + other**2 / (images - 1))
    limit = student_quantile(1 - level / 2, max(1, math.floor(freedom)))
    return Drift(now, mean, (now - mean) / error, limit)
