"""The statistics of comparisons: by hand, then against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pfedmma_deploy.report.significance import (
    Difference,
    critical_value,
    differences,
    holm,
    mean_ellipse,
    paired_difference,
    share_within,
    spread,
)


def test_three_seeds_by_hand() -> None:
    """Mean 80, deviation 2, interval 4.303 * 2 / sqrt(3)."""
    found = spread([78.0, 80.0, 82.0])
    assert found is not None
    assert (found["mean"], found["deviation"]) == (80.0, 2.0)
    assert found["interval"] == pytest.approx(4.968, abs=1e-3)


def test_one_seed_has_no_interval() -> None:
    found = spread([78.0])
    assert found is not None
    assert found == {"mean": 78.0, "deviation": None, "interval": None}


def test_what_is_not_measured_everywhere_is_not_averaged() -> None:
    assert spread([78.0, None]) is None
    assert spread([]) is None


def test_a_paired_difference_by_hand() -> None:
    """1, 2, 3: mean 2, deviation 1, t = 2 sqrt(3); of 2 degrees p = 1 - t / sqrt(2 + t^2)."""
    found = paired_difference([81.0, 72.0, 63.0], [80.0, 70.0, 60.0])
    assert found is not None
    assert found.mean == 2.0
    assert found.interval == pytest.approx(4.303 / math.sqrt(3), abs=1e-3)
    assert found.p == pytest.approx(1 - math.sqrt(12 / 14))


def test_seeds_that_agree_to_the_last_digit() -> None:
    """That three seeds have the same sign happens once in four times by chance."""
    assert paired_difference([5.0, 6.0], [5.0, 6.0]) == Difference(0.0, 0.0, 1.0)
    assert paired_difference([7.0, 8.0, 9.0], [5.0, 6.0, 7.0]) == Difference(2.0, 0.0, 0.25)
    nearly = paired_difference([0.1 + 0.2, 0.3], [0.3, 0.1 + 0.2])
    assert nearly is not None
    assert nearly.p == 1.0


def test_one_seed_establishes_nothing() -> None:
    found = differences({"a": [90.0]}, [10.0])["a"]
    assert found is not None
    assert (found.mean, found.interval, found.p, found.mark) == (80.0, None, None, "")
    assert not found.is_established


def test_what_is_not_measured_is_not_compared() -> None:
    assert paired_difference([1.0, None], [1.0, 2.0]) is None
    assert paired_difference([1.0, 2.0], [None, 2.0]) is None


def test_holm_by_hand() -> None:
    """0.01 * 4, 0.02 * 3, 0.03 * 2 which may not fall below 0.06, and 0.9."""
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("corrected", "mark"), [(0.001, "***"), (0.002, "**"), (0.02, "*"), (0.05, "*"), (0.051, "")]
)
def test_marks(corrected: float, mark: str) -> None:
    found = Difference(-1.5, 0.5, 0.0001, corrected)
    assert found.mark == mark
    assert found.is_established == bool(mark)


def test_the_correction_is_over_the_rows() -> None:
    """Alone the first is established; beside a second that is not, its p counts twice."""
    reference = [0.0] * 4
    rows: dict[str, list[float | None]] = {"a": [1.0, 2.0, 2.0, 1.0], "b": [1.0, -1.0, 1.0, -1.0]}
    rows["c"] = [1.0, None, 1.0, 1.0]
    alone = differences({"a": rows["a"]}, reference)["a"]
    found = differences(rows, reference)
    assert alone is not None and alone.p is not None
    assert alone.corrected_p == alone.p
    assert found["a"] is not None and found["b"] is not None
    assert found["a"].corrected_p == pytest.approx(2 * alone.p)
    assert found["b"].corrected_p == pytest.approx(1.0)
    assert found["c"] is None


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 10, 29, 99, 500])
def test_student_as_in_scipy(degrees: int) -> None:
    assert critical_value(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-9)
    for t in (0.0, 0.1, 1.0, 2.5, 12.0):
        expected = 1 - 2 * stats.t.sf(t, degrees)
        assert share_within(t, degrees) == pytest.approx(expected, abs=1e-12)


def test_the_paired_test_and_the_correction_as_in_scipy() -> None:
    rng = np.random.default_rng(3)
    reference = rng.normal(70, 3, 10)
    rows = {f"m{i}": reference + rng.normal(0.3 * i, 1, 10) for i in range(8)}
    found = differences({name: list(row) for name, row in rows.items()}, list(reference))
    expected = [stats.ttest_rel(row, reference).pvalue for row in rows.values()]
    assert [one.p for one in found.values() if one] == pytest.approx(expected, abs=1e-12)
    for name, one in found.items():
        interval = stats.ttest_rel(rows[name], reference).confidence_interval(0.95)
        assert one is not None and one.interval is not None
        assert (one.mean - one.interval, one.mean + one.interval) == pytest.approx(tuple(interval))


def test_an_ellipse_by_hand() -> None:
    """x varies by 4/3, y by 16/3, independently; of 4 means c^2 = 3/4 (1/0.05 - 1) = 14.25."""
    found = mean_ellipse([-1.0, 1.0, -1.0, 1.0], [-2.0, -2.0, 2.0, 2.0])
    assert found is not None
    assert (found.x, found.y) == (0.0, 0.0)
    assert found.width == pytest.approx(2 * math.sqrt(14.25 * 16 / 3))
    assert found.height == pytest.approx(2 * math.sqrt(14.25 * 4 / 3))
    assert abs(found.angle) == pytest.approx(90.0)
    assert found.reach == pytest.approx((found.height / 2, found.width / 2))


def test_the_ellipse_is_hotellings() -> None:
    rng = np.random.default_rng(5)
    points = rng.multivariate_normal([60, 70], [[4, 1.5], [1.5, 2]], 10)
    found = mean_ellipse(list(points[:, 0]), list(points[:, 1]))
    assert found is not None
    inverse = np.linalg.inv(np.cov(points.T))
    limit = 2 * 9 / (10 * 8) * stats.f.ppf(0.95, 2, 8)
    turn = math.radians(found.angle)
    for size, direction in (
        (found.width / 2, np.array([math.cos(turn), math.sin(turn)])),
        (found.height / 2, np.array([-math.sin(turn), math.cos(turn)])),
    ):
        assert (size * direction) @ inverse @ (size * direction) == pytest.approx(limit)


def test_two_seeds_have_no_ellipse_and_a_figure_that_never_varies_a_line() -> None:
    assert mean_ellipse([1.0, 2.0], [3.0, 4.0]) is None
    flat = mean_ellipse([1.0, 2.0, 3.0], [5.0, 5.0, 5.0])
    assert flat is not None
    assert flat.height == 0.0
