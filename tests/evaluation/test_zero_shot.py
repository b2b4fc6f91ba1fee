"""Zero-shot accuracy that gives mixed-up labels away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pfedmma_deploy.backbone.loading import load_backbone
from pfedmma_deploy.data.datasets import load_dataset
from pfedmma_deploy.evaluation.zero_shot import check_zero_shot, find_exchanged
from pfedmma_deploy.types import Dataset

PROMPT = "a photo of a {}."


def test_exchanged_classes_by_hand() -> None:
    good = np.array([[8, 2, 0], [1, 9, 0], [0, 0, 10]])
    assert find_exchanged(good) == []
    assert find_exchanged(good[[1, 0, 2]]) == [(0, 1, 0.9), (1, 0, 0.8)]
    # Cats that look like dogs: dogs do so too, so nothing is exchanged.
    assert find_exchanged(np.array([[3, 7, 0], [1, 9, 0], [0, 0, 10]])) == []
    # Four images say too little.
    assert find_exchanged(np.array([[0, 4], [4, 0]])) == []


@pytest.fixture(scope="module")
def sample() -> Dataset:
    return small(load_dataset("cifar10-sample"))


def small(data: Any) -> Dataset:
    """The first 20 test images of each class."""
    taken: dict[int, int] = {}
    kept = []
    for example in data.examples:
        if example.split == "test" and taken.get(example.label, 0) < 20:
            taken[example.label] = taken.get(example.label, 0) + 1
            kept.append(example)
    data.examples = tuple(kept)
    return data  # type: ignore[no-any-return]  # a data set with fewer examples


def test_good_labels_are_far_above_chance(sample: Dataset) -> None:
    found = check_zero_shot(load_backbone("pfedmma-tiny", None), sample, PROMPT)
    assert (found.images, found.chance) == (200, 10.0)
    assert found.accuracy > 50
    assert found.problems == ()


def test_shifted_labels_are_told(sample: Dataset) -> None:
    shifted: Any = load_dataset("cifar10-sample")
    shifted.examples = tuple(replace(e, label=(e.label + 1) % 10) for e in sample.examples)
    found = check_zero_shot(load_backbone("pfedmma-tiny", None), shifted, PROMPT)
    near, exchanged = found.problems
    assert (near.kind, near.level, near.count) == ("chance-accuracy", "error", 1)
    assert near.examples[0].endswith("of 200 images right; chance among 10 classes is 10.0%")
    assert exchanged.kind == "names-exchanged"
    assert exchanged.count >= 6
    assert exchanged.examples[0].startswith("'airplane' (")
    assert "look like 'truck')" in exchanged.examples[0]
