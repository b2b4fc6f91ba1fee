"""What a prediction is, and how features become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ClassScore", "Prediction", "best_classes"]


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One answer."""

    name: str
    probability: float
    """Softmax over the classes asked for, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one client's model says about one image."""

    source: str
    """The image's path, or `image N` for the N-th one given otherwise."""
    client: str
    top: tuple[ClassScore, ...]
    """The most probable classes, best first."""


def best_classes(logits: NDArray[Any], names: Sequence[str], top_k: int) -> tuple[ClassScore, ...]:
    """The `top_k` most probable of `names` by their logits [C], best first; ties keep order."""
    values = logits.astype(np.float64)
    weights = np.exp(values - values.max())
    probabilities = weights / weights.sum()
    order = np.argsort(-values, kind="stable")[:top_k]
    return tuple(ClassScore(names[i], float(probabilities[i])) for i in order)
