"""The table of serving: its figures by hand; the servers are measured, not tested, there."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import serve_table
from pfedmma_deploy.benchmark.report import Row

ROWS: list[Row] = [
    {"round": 0, "kind": "batches", "per_second": 100.0, "cpu": 0.010},
    {"round": 1, "kind": "batches", "per_second": 50.0, "cpu": 0.010},
    {"round": 0, "kind": "one by one", "per_second": 60.0, "cpu": 0.016, "failed": 0},
    {"round": 1, "kind": "one by one", "per_second": 30.0, "cpu": 0.016, "failed": 2},
    # In the other order, as rounds turn them around.
    {
        "round": 1,
        "kind": "pfedmma serve",
        "per_second": 45.0,
        "cpu": 0.011,
        "p99": 0.3,
        "half_p99": 1.28,
    },
    {
        "round": 0,
        "kind": "pfedmma serve",
        "per_second": 90.0,
        "cpu": 0.011,
        "p99": 0.1,
        "half_p99": 0.32,
    },
]


def test_ratios_are_taken_within_rounds() -> None:
    batches, ours, theirs = serve_table.summarize(ROWS)
    assert (batches["kind"], ours["kind"], theirs["kind"]) == (
        "batches",
        "pfedmma serve",
        "one by one",
    )
    assert batches["per_second"] == 75
    assert ours["rate_to batches"] == pytest.approx(0.9)
    assert ours["rate_to one by one"] == pytest.approx(1.5)
    assert ours["cpu_to batches"] == pytest.approx(1.1)
    assert ours["p99"] == pytest.approx(0.2)
    # 0.32 s are one batch of 32 at 100 images a second, 1.28 s are two at 50.
    assert ours["half_p99_batches"] == pytest.approx(1.5)
    assert theirs["failed"] == 1


def test_report(tmp_path: Path) -> None:
    measured = {
        "rows": ROWS,
        "one_caller": {
            "request": 0.012,
            "predict": 0.0105,
            "overhead": 0.0015,
            "request_cpu": 0.011,
            "predict_cpu": 0.0097,
        },
        "endurance": {
            "minutes": 10,
            "requests": 12_000,
            "failed": 0,
            "before": 200 * 2**20,
            "after": 204 * 2**20,
        },
    }
    stored = {"command": "c", "backbones": {"small": measured}}
    serve_table.write_report(tmp_path / "serve.json", stored, "a machine")
    text = (tmp_path / "serve.md").read_text()
    assert "| pfedmma serve | 67.5 | 0.90 | 1.50 | 11.0 | 1.10 |" in text
    assert "12.00 ms a request, 10.50 ms `Classifier.predict`" in text
    assert "11.00 ms in the server and 9.70 ms, 1.30 ms between the two." in text
    assert "12,000 requests, 0 failed; memory 200 MiB before, 204 MiB after (+2.0 %)." in text
    assert "## small" in text
    assert "Made by `c`. 64 callers" in text
