"""Spread over seeds against figures worked out by hand."""

from __future__ import annotations

import pytest

from pfedmma_deploy.report.statistics import spread


def test_three_seeds_by_hand() -> None:
    """Mean 80, deviation 2, interval 4.303 * 2 / sqrt(3)."""
    found = spread([78.0, 80.0, 82.0])
    assert found is not None
    assert (found.mean, found.deviation) == (80.0, 2.0)
    assert found.interval == pytest.approx(4.968, abs=1e-3)


def test_one_seed_has_no_interval() -> None:
    found = spread([78.0])
    assert found is not None
    assert (found.mean, found.deviation, found.interval) == (78.0, None, None)


def test_what_is_not_measured_everywhere_is_not_averaged() -> None:
    assert spread([78.0, None]) is None
    assert spread([]) is None


def test_many_seeds_use_the_normal_distribution() -> None:
    found = spread([0.0, 2.0] * 50)
    assert found is not None
    assert found.deviation is not None
    assert found.interval == pytest.approx(1.960 * found.deviation / 10)
