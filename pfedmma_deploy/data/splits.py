"""Training, validation and test parts, set aside by the seed where the data have none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from pfedmma_deploy.types import Example, Split

__all__ = ["MIN_IMAGES", "carve_splits", "carved_sizes"]

MIN_IMAGES: Final = 5
"""Fewer images of a class than this are too few for parts of every kind."""
_TEST_SHARE: Final = 0.2
_VAL_SHARE: Final = 0.1


def carved_sizes(num_images: int, *, test: bool, val: bool) -> tuple[int, int]:
    """How many of a class's training images become (test, validation) images.

    From `MIN_IMAGES` on: 20 % for testing and 10 % for validation, rounded, at least one each.
    With two to four images: one for testing, none for validation. A single image trains.

    Args:
        num_images: training images of the class.
        test: whether a test part is missing.
        val: whether a validation part is missing.
    """
    if num_images >= MIN_IMAGES:
        shares = ((_TEST_SHARE, test), (_VAL_SHARE, val))
        of_test, of_val = (max(1, round(num_images * share)) * want for share, want in shares)
        return of_test, of_val
    return (1 if test and num_images >= 2 else 0), 0


def carve_splits(
    examples: Sequence[Example], rng: np.random.Generator
) -> tuple[tuple[Example, ...], tuple[int, ...]]:
    """Sets aside a test or validation part, class by class, where no example has that split.

    Returns:
        The examples in the same order, each with the split that it now belongs to, and the
        labels of classes with fewer than `MIN_IMAGES` images to set some aside from.
    """
    splits = {example.split for example in examples}
    test, val = "test" not in splits, "val" not in splits
    if not (test or val):
        return tuple(examples), ()
    by_label: dict[int, list[int]] = {}
    for index, example in enumerate(examples):
        if example.split == "train":
            by_label.setdefault(example.label, []).append(index)
    carved: dict[int, Split] = {}
    for label in sorted(by_label):
        shuffled = rng.permutation(by_label[label])
        of_test, of_val = carved_sizes(len(shuffled), test=test, val=val)
        carved |= dict.fromkeys(map(int, shuffled[:of_test]), "test")
        carved |= dict.fromkeys(map(int, shuffled[of_test : of_test + of_val]), "val")
    small = tuple(label for label in sorted(by_label) if len(by_label[label]) < MIN_IMAGES)
    moved = (
        replace(example, split=carved[index]) if index in carved else example
        for index, example in enumerate(examples)
    )
    return tuple(moved), small
