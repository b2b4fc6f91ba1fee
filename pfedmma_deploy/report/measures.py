"""The formulas of a report: intervals, alignment of two modalities, drift.

Everything here takes arrays and gives numbers; what they are taken of is in the other modules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
Rows = NDArray[np.int64]

_NORMAL = 1.959964
"""0.975 quantile of the normal distribution."""


def wilson(right: int, total: int) -> list[float]:
    """95 % interval of a share, in percent: Wilson's score interval (1927).

    Args:
        right: images that were answered rightly.
        total: images, at least one.
    """
    share, z2 = right / total, _NORMAL**2 / total
    centre = (share + z2 / 2) / (1 + z2)
    half = _NORMAL / (1 + z2) * math.sqrt(share * (1 - share) / total + z2 / (4 * total))
    return [100 * max(centre - half, 0.0), 100 * min(centre + half, 1.0)]


def modality_gap(images: Array, texts: Array) -> float:
    """Distance of the centroids of image features [N, D] and text features [C, D].

    Both L2-normalised (Liang et al., arXiv 2203.02053).
    """
    return float(np.linalg.norm(images.mean(axis=0) - texts.mean(axis=0)))


def pair_cosines(images: Array, texts: Array, rows: Rows) -> tuple[float, float | None]:
    """Mean cosine of images with their own class's text, and with all other texts.

    Args:
        images: [N, D], L2-normalised.
        texts: [C, D], L2-normalised.
        rows: [N], the text of each image's own class.

    Returns:
        Both means; the second is None of a single class.
    """
    cosines = images @ texts.T
    matching = cosines[np.arange(len(rows)), rows]
    if len(texts) == 1:
        return float(matching.mean()), None
    others = (cosines.sum() - matching.sum()) / (cosines.size - len(rows))
    return float(matching.mean()), float(others)


def linear_cka(x: Array, y: Array) -> float | None:
    """Linear CKA of two representations of the same N items: 1 is equal up to rotation and size.

    ||Yc' Xc||^2 / (||Xc' Xc|| ||Yc' Yc||), Frobenius norms of centred columns (Kornblith et al.,
    arXiv 1905.00414, equation 4 with linear kernels). None where one of them does not vary.

    Args:
        x: [N, d].
        y: [N, e].
    """
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    size = float(np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    return float(np.linalg.norm(y.T @ x) ** 2 / size) if size > 1e-12 else None


def principal_plane(features: Array) -> Array:
    """Coordinates [N, 2] of features [N, D] along their two directions of largest variance.

    The sign of each direction is that of its largest component, so that pictures repeat.
    """
    centred = features - features.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    chosen = np.zeros((2, features.shape[1]))
    chosen[: len(directions)] = directions[:2]
    largest = chosen[np.arange(2), np.abs(chosen).argmax(axis=1)]
    plane: Array = centred @ (chosen * np.where(largest < 0, -1, 1)[:, None]).T
    return plane


def layer_drift(now: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict[str, float | None]:
    """How far each layer moved, as a fraction of its size: ||now - start|| / ||start||.

    A layer is the tensors whose names agree but for what stands behind the last dot, such as a
    weight and its bias. None where the layer starts at zero.
    """
    moved: dict[str, float] = {}
    size: dict[str, float] = {}
    for name, value in start.items():
        layer = name.rpartition(".")[0] or name
        change = float((now[name] - value).double().square().sum())
        moved[layer] = moved.get(layer, 0.0) + change
        size[layer] = size.get(layer, 0.0) + float(value.double().square().sum())
    return {layer: math.sqrt(moved[layer] / size[layer]) if size[layer] else None for layer in size}


def cosines(changes: Sequence[Array]) -> list[list[float | None]]:
    """Cosine of every two of these vectors; None where one of them is zero."""
    sizes = [float(np.linalg.norm(change)) for change in changes]
    table: list[list[float | None]] = []
    for one, size in zip(changes, sizes, strict=True):
        row: list[float | None] = []
        for other, length in zip(changes, sizes, strict=True):
            row.append(float(one @ other) / (size * length) if size * length else None)
        table.append(row)
    return table


def mean_of(values: Sequence[Any]) -> float | None:
    """Mean of the values that are known; None where none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def spread_out(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]
