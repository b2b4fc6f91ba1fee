"""One command trains on data laid out like each data set that people have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pfedmma_deploy.cli.main import run
from tests.layouts import LAYOUTS

ONE_ROUND = "--backbone pfedmma-tiny --preset quickstart --rounds 1 --local-epochs 1 --shots 4"


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_data_set_trains_with_one_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = LAYOUTS[name](tmp_path).path
    monkeypatch.chdir(tmp_path)
    command = f"train --data {path} {ONE_ROUND} --clients 2 --out run --json"
    assert run(command.split()) == 0, capsys.readouterr().err
    trained = json.loads(capsys.readouterr().out)
    assert trained["clients"] == ["0", "1"] and trained["rounds"] == 1
    # The run opens the same data again.
    assert run(["evaluate", "--run", "run", "--json"]) == 0, capsys.readouterr().err
    figures = json.loads(capsys.readouterr().out)
    assert 0 <= figures["personalized"]["local"] <= 100
