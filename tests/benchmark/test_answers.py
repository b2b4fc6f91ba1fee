"""The table of answers: its figures by hand, on numbers that need no model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.answers_table import (
    Case,
    Model,
    all_scores,
    calibration_error,
    finding_lines,
    mean,
    monitor_lines,
    promise_table,
    score_table,
    separation,
    shown,
)
from pfedmma_deploy.calibration import MEAN_WEIGHT
from pfedmma_deploy.types import ClientData


def test_separation_by_hand() -> None:
    """95 % of 20 known scores are above 1.95 (interpolated): of 1 and 3, one gets through."""
    known = np.arange(1.0, 21.0)
    found = separation(known, np.array([1.0, 3.0]))
    assert found["false"] == 50.0
    # 19 of 20 lie above 1 and one is a tie; 17 lie above 3, and one is a tie.
    assert found["auroc"] == pytest.approx(100 * (19.5 + 17.5) / 40)
    assert separation(known, np.empty(0)) == {"auroc": None, "false": None}


def test_scores_by_hand() -> None:
    """One image along the first axis; class, words and novel name along it, or at right angles."""
    e = np.eye(3)
    texts = {"base": e[:1], "novel": e[1:2], "words": np.stack([e[1], e[0]])}
    plain = Model(e[1:2], texts)
    case = Case(
        client=ClientData("a", (0,), (), (), ()),
        zero_shot=plain,
        personal=Model(e[:1], texts),
        mean=e[0],
        row={},
        scale=2.0,
        named=np.array([1]),
    )
    found = all_scores(case)
    assert found["largest cosine, zero-shot"] == pytest.approx([0.0])
    assert found["largest cosine, personal"] == pytest.approx([2.0])
    assert found["negatives that the user knows, personal"] == pytest.approx([2.0])
    # The words score 0 and 2, and the second one names a class.
    both = np.log(1 + np.exp(2.0))
    words = "general words (zero-shot's features), personal"
    assert found[words] == pytest.approx([2 - both])
    assert found["the same, no word names a class of the sample"] == pytest.approx([2.0])
    built = found["**built**: general words + 0.25 mean image"]
    assert built == pytest.approx([2 - both + MEAN_WEIGHT * 2])
    assert found["general words + 0.5 mean image"] == pytest.approx([2 - both + 1.0])


def test_calibration_error_beside_chance() -> None:
    """A hundred answers at 80 %, 80 of them right: no error; by chance there is some."""
    confidence, is_right = np.full(100, 0.8), np.arange(100) < 80
    found = calibration_error((confidence, is_right))
    assert found["ece"] == pytest.approx(0.0)
    assert found["floor"] is not None and 2 < found["floor"] < 5


def test_tables() -> None:
    figures = {"auroc": 90.0, "false": 20.0, "base_auroc": 70.0, "domain_auroc": None}
    worse = {**figures, "auroc": 80.0}
    entry: dict[str, Any] = {
        "resampled": {"recall 5": [90.0, 100.0], "coverage 5": [100.0]},
        "monitored": {"the same": 2.0, "novel classes": 100.0},
    }
    runs = [{"clients": {"a": {"scores": {"s": figures}, **entry}}}]
    runs.append({"clients": {"b": {"scores": {"s": worse}, **entry}}})
    assert score_table(runs)[-1] == "| s | 85.0 | 80.0 | 20.0 | 70.0 | - |"
    assert promise_table(runs)[2] == "| 5 | 95.0 | 100.0 |"
    assert monitor_lines(runs)[4:6] == [
        "| the same | 2 | 2.0 | 2.0 |",
        "| novel classes | 2 | 100.0 | 100.0 |",
    ]
    copies = {"0.98": {"JPEG": 50.0, "other pictures": 0.25}}
    lines = finding_lines({"copies": copies, "images": 9, "first_20": 75.0})
    assert lines[-2] == "| 0.98 | 50.0 | 0.2500 |"
    assert (mean([None, 1.0, 3.0]), mean([None]), shown(None)) == (2.0, None, "-")
