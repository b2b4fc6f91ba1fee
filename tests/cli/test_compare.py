"""`pfedmma compare`: its options, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pfedmma_deploy.cli.main import run
from pfedmma_deploy.cli.options import split_numbers
from tests import layouts, tinyclip
from tests.federated.conftest import COLOURS, one_thread, write_images

__all__ = ["one_thread"]


def test_seeds_as_numbers_and_ranges() -> None:
    assert split_numbers("--seeds", "0-2, 7", "0-9") == [0, 1, 2, 7]
    assert split_numbers("--seeds", "4-4", "0-9") == [4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--seeds ten", "--seeds takes whole numbers such as 0-9 or 0,3,7, not 'ten'"),
        ("--seeds 3-1", "name at least one seed to compare"),
        ("--methods ,", "name at least one method to compare"),
        ("--seeds -1", "--seeds takes whole numbers such as 0-9 or 0,3,7, not '-1'"),
        ("--criterion own", "--criterion says what --tune chooses by: add --tune, or leave it out"),
        ("--tune --criterion both", "criterion must be one of harmonic, own, not 'both'"),
    ],
)
def test_mistakes(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", "--preset", "quickstart", *arguments.split()]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, (name, colour) in enumerate(COLOURS.items()):
        write_images(tmp_path / "photos" / name, 8, colour, seed)
    tinyclip.register()
    command = (
        "compare --methods pfedmma,promptfl --data photos --backbone test-clip --pretrained random "
        "--clients 2 --shots 2 --rounds 1 --local-epochs 1 --out table"
    ).split()
    assert run([*command, "--seeds", "0-1", "--json"]) == 0
    shown = capsys.readouterr()
    values = json.loads(shown.out)
    assert [table["against"] for table in values["differences"]] == ["pfedmma", "zero-shot"]
    assert [one["seed"] for one in values["rows"][0]["by_seed"]] == [0, 1]
    assert "4 trials to run; how long that takes is known after the first one" in shown.err
    assert "3 trials to run: about a minute, judged by 1 that is done" in shown.err
    assert (tmp_path / "table" / "compare.png").exists()
    # All of it is there, so held against another method it takes no training.
    assert run([*command, "--seeds", "0-1", "--against", "promptfl"]) == 0
    shown = capsys.readouterr()
    assert "to run" not in shown.err
    assert "Minus promptfl" in shown.out
    assert "Minus zero-shot" in shown.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--protocol pfedmma-papr", "no protocol is called 'pfedmma-papr'; did you mean"),
        ("--protocol pfedmma-paper --tune", "--protocol decides what --tune does"),
        ("--protocol pfedmma-paper --preset quickstart", "--protocol decides what --preset does"),
    ],
)
def test_mistakes_with_protocols(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", *arguments.split()]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_protocol(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layouts.pets(tmp_path)
    tinyclip.register()
    command = (
        f"compare --protocol pfedmma-paper --data {tmp_path} --backbone test-clip --pretrained "
        "random --clients 2 --shots 2 --rounds 1 --local-epochs 1 --seeds 0-1 --methods "
        f"pfedmma,zero-shot --out {tmp_path / 'paper'}"
    ).split()
    assert run(command) == 0
    shown = capsys.readouterr()
    assert "6 of 7 data sets of pfedmma-paper are left out: sun397 (no folder sun397" in shown.err
    assert "pfedmma-paper, mean of 1 data set, 2 seeds, ± 95 % interval" in shown.out
    assert "Accuracy in % Local theirs Base theirs" in " ".join(shown.out.split())
    assert "Not as in the protocol: backbone test-clip, clients 2" in shown.out
    assert (tmp_path / "paper" / "protocol.md").exists()
    assert run([*command, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert list(values["datasets"]) == ["oxford_pets"]
    assert values["published"][0]["local"] == 76.36


def test_a_comparison_that_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pfedmma_deploy.report.compare.compare", stop)
    command = f"compare --preset quickstart --methods pfedmma,zero-shot --out {tmp_path}"
    assert run(command.split()) == 130
    told = capsys.readouterr().err
    assert "Stopped. Repeat the command to go on; what is finished is kept." in told
