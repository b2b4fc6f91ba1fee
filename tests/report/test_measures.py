"""The formulas of a report on numbers that can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pfedmma_deploy.report.measures import (
    cosines,
    layer_drift,
    linear_cka,
    modality_gap,
    pair_cosines,
    principal_plane,
    spread_out,
    wilson,
)


def test_wilson_of_eight_in_ten() -> None:
    """z^2 = 3.8415: centre (0.8 + 0.1921) / 1.3841, half 1.96 / 1.3841 * sqrt(0.016 + 0.0096)."""
    assert wilson(8, 10) == pytest.approx([49.02, 94.33], abs=0.01)
    assert wilson(0, 10)[0] == 0.0 and wilson(10, 10)[1] == pytest.approx(100.0)


@settings(deadline=None)
@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_share(total: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, total))
    low, high = wilson(right, total)
    assert 0 <= low <= 100 * right / total + 1e-9 <= high + 2e-9 <= 100 + 2e-9


IMAGES = np.array([[1.0, 0.0], [0.6, 0.8]])
TEXTS = np.array([[0.0, 1.0], [1.0, 0.0]])


def test_gap_and_cosines_by_hand() -> None:
    """Centroids (0.8, 0.4) and (0.5, 0.5); cosines 0 and 0.6 with the own text, 1 and 0.8 else."""
    assert modality_gap(IMAGES, TEXTS) == pytest.approx(math.sqrt(0.3**2 + 0.1**2))
    matching, other = pair_cosines(IMAGES, TEXTS, np.array([0, 1]))
    assert matching == pytest.approx(0.3) and other == pytest.approx(0.9)
    alone, other = pair_cosines(IMAGES, TEXTS[:1], np.array([0, 0]))
    assert alone == pytest.approx(0.4) and other is None


def test_cka_by_hand() -> None:
    """Centred x = (-1, 0, 1), y = (-1, 2, -1): x'y = 0. With z = (0, 1, 2): the same as x."""
    x, y, z = (np.array([[a], [b], [c]], float) for a, b, c in ((0, 1, 2), (0, 3, 0), (5, 7, 9)))
    assert linear_cka(x, y) == pytest.approx(0.0)
    assert linear_cka(x, z) == pytest.approx(1.0)
    # x'w = 1 for w = (0, 0, 1), centred (-1/3, -1/3, 2/3): 1 / (2 * 2/3).
    assert linear_cka(x, np.array([[0.0], [0.0], [1.0]])) == pytest.approx(0.75)
    assert linear_cka(x, np.ones((3, 2))) is None


def test_cka_does_not_see_rotation_and_size() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 4))
    turn, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    assert linear_cka(x, 3.0 * x @ turn + 1.0) == pytest.approx(1.0)


def test_principal_plane_of_a_line() -> None:
    """Points on a line along (0, 1, 0) spread over the first direction alone."""
    plane = principal_plane(np.array([[5.0, 0.0, 1.0], [5.0, 2.0, 1.0], [5.0, 4.0, 1.0]]))
    assert plane == pytest.approx(np.array([[-2.0, 0.0], [0.0, 0.0], [2.0, 0.0]]), abs=1e-9)
    assert principal_plane(np.array([[1.0], [3.0]])).shape == (2, 2)


def test_drift_of_layers_by_hand() -> None:
    """Weight (3, 4) to (3, 5) and bias 0 to 2: sqrt(1 + 4) of 5; what starts at zero has none."""
    start = {
        "a.down.weight": torch.tensor([3.0, 4.0]),
        "a.down.bias": torch.zeros(1),
        "ctx": torch.zeros(2),
    }
    now = {
        "a.down.weight": torch.tensor([3.0, 5.0]),
        "a.down.bias": torch.tensor([2.0]),
        "ctx": torch.ones(2),
    }
    assert layer_drift(now, start) == {"a.down": pytest.approx(math.sqrt(5) / 5), "ctx": None}


def test_similarity_of_changes() -> None:
    found = cosines([np.array([1.0, 0.0]), np.array([0.0, 2.0]), np.array([-3.0, 0.0])])
    assert found == [[1.0, 0.0, -1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 1.0]]
    assert cosines([np.zeros(2)]) == [[None]]


def test_even_spacing() -> None:
    assert spread_out("abcdefg", 3) == ["a", "d", "g"]
    assert spread_out("ab", 3) == ["a", "b"]
