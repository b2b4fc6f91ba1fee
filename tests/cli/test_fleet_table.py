"""The table of a federation that is served, on a terminal and in a pipe."""

from __future__ import annotations

import io
import sys

import pytest

from pfedmma_deploy.cli.fleet_table import live_table
from pfedmma_deploy.cli.output import Output
from pfedmma_deploy.fleet.status import FleetStatus
from tests.cli.terminal import Terminal


def status() -> FleetStatus:
    found = FleetStatus("wards", "fed.example.org:8443", rounds=4, remark="1 of 2 are here")
    found.site("ward-a").state = "here"
    found.site("ward-a").images = 120
    found.site("ward-b").reason = "left in the middle of the round"
    return found


def test_in_a_pipe_each_change_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    found = status()
    with live_table(Output(io.StringIO(), as_json=False, quiet=False)) as watch:
        watch(found)
        watch(found)
        found.stage, found.remark = "training", ""
        watch(found)
    assert capsys.readouterr().err.splitlines() == [
        "wards: waiting for sites (1 of 2 are here), round 0 of 4",
        "  ward-a: here",
        "  ward-b: not here (left in the middle of the round)",
        "wards: training, round 0 of 4",
    ]


def test_on_a_terminal_the_table_is_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with live_table(Output(io.StringIO(), as_json=False, quiet=False)) as watch:
        watch(status())
    drawn = terminal.getvalue()
    assert "wards: waiting for sites (1 of 2 are here), round 0 of 4" in drawn
    assert "ward-a" in drawn and "120" in drawn and "┃" in drawn


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with live_table(Output(io.StringIO(), as_json=False, quiet=True)) as watch:
        watch(status())
    assert capsys.readouterr() == ("", "")
