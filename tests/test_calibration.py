"""When an answer can be believed: every formula by hand, promises by drawing many times."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfedmma_deploy.calibration import (
    ACCEPT,
    MOST_STORED,
    Array,
    Calibration,
    ClientCalibration,
    auroc,
    fit_calibration,
    fit_temperature,
    general_words,
    known_scores,
    probabilities,
    reliability,
    student_quantile,
)
from pfedmma_deploy.errors import StoreError, UsageError
from pfedmma_deploy.evaluation.calibrate import competing_words

SAMPLE = Calibration(
    images=5,
    temperature=1.5,
    strength=1.0,
    known_mean=2.0,
    known_deviation=0.5,
    confidence_mean=0.8,
    confidence_deviation=0.1,
    own_class=(0.2, 0.4, 0.6, 0.8, 0.9),
)


def test_calibration_error_by_hand() -> None:
    """Two answers at 90 %, one right: 40 points off; two at 60 %, both right: 40 points off."""
    confidence = np.array([0.9, 0.9, 0.6, 0.6])
    bins, error = reliability(confidence, np.array([True, False, True, True]))
    assert error == pytest.approx(40.0)
    assert bins == [
        {"count": 2, "confidence": pytest.approx(60.0), "accuracy": 100.0},
        {"count": 2, "confidence": pytest.approx(90.0), "accuracy": 50.0},
    ]


def test_calibration_error_of_nothing_and_of_the_ends() -> None:
    assert reliability(np.empty(0), np.empty(0, bool)) == ([], None)
    bins, error = reliability(np.array([0.0, 1.0]), np.array([False, True]))
    assert (len(bins), error) == (2, 0.0)


def test_temperature_by_hand() -> None:
    """Scores (ln 9, 0) say 90 %, three of four are right: at T = 2 they say 75 %.

    Of so many images the prior of 16 does not show.
    """
    scores = np.tile([math.log(9), 0.0], (40000, 1))
    assert probabilities(scores)[0].tolist() == pytest.approx([0.9, 0.1])
    assert fit_temperature(scores, np.tile([0, 0, 0, 1], 10000)) == pytest.approx(2.0, abs=1e-2)


def test_few_images_move_a_temperature_little() -> None:
    """One right image: p = 1 / (1 + e^-b) and slope 1 - p + 16 (1 / b - 1) = 0 at b = 1 / T."""
    scores, right = np.array([[1.0, 0.0]]), np.array([0])
    inverse = 1 / fit_temperature(scores, right)
    share = 1 / (1 + math.exp(-inverse))
    assert 1 - share + 16 * (1 / inverse - 1) == pytest.approx(0.0, abs=1e-3)
    assert 1 < inverse < 1.05
    assert fit_temperature(np.zeros((3, 2)), np.array([0, 1, 0])) == pytest.approx(1.0, abs=1e-4)
    assert fit_temperature(np.empty((0, 2)), np.empty(0, int)) == pytest.approx(1.0, abs=1e-4)


def test_auroc_by_hand() -> None:
    """Pairs of (0.9, 0.5) and (0.1, 0.5): three are ordered, one is a tie."""
    assert auroc(np.array([0.9, 0.5]), np.array([0.1, 0.5])) == 87.5
    assert auroc(np.array([0.1]), np.array([0.9])) == 0.0
    assert auroc(np.array([0.1]), np.empty(0)) is None


def test_scores_of_being_known_by_hand() -> None:
    """Two classes at e^0 each and one word at e^1: ln 2 - 1, and a quarter of 8 times 0.5."""
    found = known_scores(np.zeros((1, 2)), np.ones((1, 1)), np.array([0.5]), 8.0)
    assert found == pytest.approx([math.log(2) - 1 + 1.0])
    # No exponential leaves its range.
    far = known_scores(np.full((1, 1), 900.0), np.full((1, 1), 800.0), np.zeros(1), 1.0)
    assert far == pytest.approx([100.0])


@pytest.mark.parametrize(
    ("share", "freedom", "expected"),
    # Tables of Student's t.
    [
        *((0.95, 1, 6.314), (0.95, 2, 2.920), (0.95, 3, 2.353), (0.95, 9, 1.833)),
        *((0.99, 4, 3.747), (0.9, 29, 1.311), (0.5, 5, 0.0), (0.2, 10, -0.879)),
    ],
)
def test_students_quantiles(share: float, freedom: int, expected: float) -> None:
    assert student_quantile(share, freedom) == pytest.approx(expected, rel=0.015, abs=1e-3)


def test_threshold_by_hand() -> None:
    """Five images: 2 - 2.132 * 0.5 * sqrt(1 + 1/5)."""
    assert SAMPLE.threshold(0.95) == pytest.approx(2 - 2.132 * 0.5 * math.sqrt(1.2), abs=0.01)
    assert SAMPLE.threshold() == SAMPLE.threshold(ACCEPT)
    assert SAMPLE.threshold(1.0) is None
    # Four images may be alike by chance.
    assert replace(SAMPLE, images=4, own_class=(0.2,)).threshold(0.95) is None


@pytest.mark.parametrize("accept", [0.0, -1.0, 1.01, math.nan])
def test_shares_beyond_their_range(accept: float) -> None:
    with pytest.raises(UsageError, match=r"accept should be above 0 and at most 1, found"):
        SAMPLE.threshold(accept)
    with pytest.raises(UsageError, match=r"coverage should be above 0 and below 1, found"):
        SAMPLE.least_probability(accept if accept != 1.01 else 1.0)


@pytest.mark.parametrize("images", [5, 10, 60])
def test_the_share_asked_for_is_kept(images: int) -> None:
    """Of normal scores, whatever the number of images that the threshold is drawn from."""
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(1500):
        scores = rng.normal(3.0, 2.0, images + 1)
        found = replace(
            SAMPLE,
            images=images,
            known_mean=float(scores[1:].mean()),
            known_deviation=float(scores[1:].std(ddof=1)),
        )
        kept.append(scores[0] >= (found.threshold(0.9) or 0.0))
    assert np.mean(kept) == pytest.approx(0.9, abs=0.02)


def test_least_probabilities_by_hand() -> None:
    """Of five images: with chance 1/6 a new one lies below the lowest, with 2/6 below the next."""
    assert SAMPLE.least_probability(0.8) == 0.2
    assert SAMPLE.least_probability(0.6) == 0.4
    assert SAMPLE.least_probability(0.7) == 0.2
    # Five images cannot promise 90 %: every class has to be let in.
    assert SAMPLE.least_probability(0.9) == 0.0


def reference(own_class: Array, coverage: float) -> float:
    """Split conformal prediction as the literature writes it, with scores 1 - p.

    The ceil((n + 1) coverage)-th smallest of n scores; a class is in where 1 - p is at most that.
    """
    scores = np.sort(1 - own_class)
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)
    return 0.0 if rank > len(scores) else float(1 - scores[rank - 1])


@given(st.integers(1, 90), st.floats(0.05, 0.99))
def test_sets_are_those_of_the_reference(images: int, coverage: float) -> None:
    rng = np.random.default_rng(images)
    scores, rows = rng.normal(size=(images, 3)), rng.integers(0, 3, images)
    found = fit_calibration(scores, rows, np.zeros(images), 1.0)
    own = probabilities(scores / found.temperature)[np.arange(images), rows]
    assert found.least_probability(coverage) == pytest.approx(reference(own, coverage), abs=1e-12)


@pytest.mark.parametrize("coverage", [0.8, 0.9])
@pytest.mark.parametrize("images", [19, 60, 400])
def test_sets_hold_the_right_class_as_often_as_promised(images: int, coverage: float) -> None:
    """Between what was asked and one image more, also where not all probabilities are stored."""
    rng = np.random.default_rng(images)
    held = []
    for _ in range(800):
        rows = rng.integers(0, 4, images + 1)
        scores = rng.normal(size=(images + 1, 4))
        scores[np.arange(images + 1), rows] += 1.0
        found = fit_calibration(scores[1:], rows[1:], np.zeros(images), 1.0)
        own = probabilities(scores[:1] / found.temperature)[0, rows[0]]
        held.append(own >= found.least_probability(coverage))
    slack = 1 / (images + 1) if images <= MOST_STORED else 1 / MOST_STORED
    assert coverage - 0.03 <= np.mean(held) <= coverage + slack + 0.03


def test_it_is_written_and_read() -> None:
    both = ClientCalibration(SAMPLE, np.array([0.6, 0.8]))
    again = ClientCalibration.from_dict(both.to_dict(), "client 'a'")
    assert again.calibration == SAMPLE and again.mean.tolist() == [0.6, 0.8]


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"temperature": math.nan}, "it has a number that is not finite"),
        ({"temperature": 100.0}, "its temperature is 100"),
        ({"images": 2}, "it has 5 probabilities of 2 images"),
        ({"own_class": [0.9, 0.1]}, "a deviation is negative, or its probabilities are no asc"),
        ({"mean": [3.0, 4.0]}, "its mean has length 5, expected 1"),
        ({"known_mean": "high"}, "ValueError: could not convert string to float"),
        ({"mean": None}, "its mean has length nan, expected 1"),
    ],
)
def test_what_cannot_be_a_calibration(changes: dict[str, object], wrong: str) -> None:
    raw = ClientCalibration(SAMPLE, np.array([0.6, 0.8])).to_dict() | changes
    with pytest.raises(
        StoreError, match=f"calibration of client 'a' cannot be used, since {wrong}"
    ):
        ClientCalibration.from_dict(raw, "client 'a'")
    with pytest.raises(StoreError, match="KeyError: 'temperature'"):
        ClientCalibration.from_dict({}, "client 'a'")


def test_general_words() -> None:
    words = general_words()
    assert len(words) == len(set(words)) > 300
    assert all(word == word.strip().lower() and word for word in words)
    # A class does not compete with itself, however it is written; its synonyms do.
    left = competing_words(["Traffic_Light", "automobile"])
    assert set(words) - set(left) == {"traffic light"}
    assert "car" in left
