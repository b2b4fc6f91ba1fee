"""The table of federations: its figures by hand; the federation itself is `rehearse`'s."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks import fleet_table
from pfedmma_deploy.benchmark.report import Row
from pfedmma_deploy.store.run import Run

ROW: Row = {
    "sites": 3,
    "threads": 1,
    "seconds": 1.5,
    "seconds_simulation": 0.75,
    "payload": 8192,
    "wire": 20000,
    "server_memory": 3 * 2**20,
    "site_memory": 5 * 2**20,
    "server_start": 2.0,
    "site_start": 3.0,
    "is_identical": True,
}


def test_seconds_of_a_round_leave_out_the_first() -> None:
    run = SimpleNamespace(rounds=[{"seconds": s} for s in (90.0, 1.0, 4.0, 2.0)])
    assert fleet_table._seconds(cast(Run, run)) == 2.0


def test_report(tmp_path: Path) -> None:
    out = tmp_path / "fleet.json"
    fleet_table.write_report(out, {"command": "c", "rows": [ROW]}, "a machine")
    text = out.with_suffix(".md").read_text()
    assert "| 3 | 1 | 1.50 | 0.75 | 8,192 | 20,000 | 3.00 | 5.00 | 2.00 | 3.00 | yes |" in text
    assert "Made by `c`." in text and "a machine" in text


def test_each_number_of_sites_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(sites: int, folder: Path) -> dict[str, Any]:
        assert folder.is_dir()
        return {**ROW, "sites": sites}

    out = tmp_path / "fleet.json"
    monkeypatch.setattr(fleet_table, "measure", measure)
    monkeypatch.setattr("sys.argv", ["fleet_table", "--sites", "2,4", "--out", str(out)])
    fleet_table.main()
    lines = out.with_suffix(".md").read_text().splitlines()
    assert [line[:4] for line in lines if line.endswith("| yes |")] == ["| 2 ", "| 4 "]
