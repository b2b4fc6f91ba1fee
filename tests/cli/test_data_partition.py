"""`pfedmma data partition` and `data check`: from a folder to a file that trains."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pfedmma_deploy.cli.main import run
from tests.data.bad_folder import EXPECTED, make_bad_folder


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def as_json(capsys: pytest.CaptureFixture[str], arguments: str, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert run([*arguments.split(), "--json"]) == code
    printed = capsys.readouterr()
    found: dict[str, Any] = json.loads(printed.out)
    return found


@pytest.mark.parametrize("command", ["check", "partition"])
def test_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Examples:\n    pfedmma data {command} " in text
    for option in ("--partition", "--unseen-domain", "--json", "--quiet", "--verbose"):
        assert option in text


def test_a_division_is_written_and_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    line = "data partition cifar10-sample --partition dirichlet --clients 3 --shots 20 --seed 5"
    values = as_json(capsys, f"{line} --out c.toml --heatmap maps/c.png")
    assert values["clients_file"] == "c.toml" and values["heatmap"] == "maps/c.png"
    assert [client["id"] for client in values["clients"]] == ["0", "1", "2"]
    assert sum(client["train"] for client in values["clients"]) == 5 * 20
    written = tomllib.loads(Path("c.toml").read_text(encoding="utf-8"))
    assert written["made_with"] == {
        "clients": 3,
        "classes": "base-novel",
        "partition": "dirichlet",
        "dirichlet_beta": 0.3,
        "num_shots": 20,
        "seed": 5,
    }
    with Image.open("maps/c.png") as image:
        assert image.format == "PNG"
    assert run(line.split()) == 0
    shown = capsys.readouterr().out
    assert "cifar10-sample: 3 clients with 100 images to train on" in shown
    assert "classes: 0 airplane, 1 automobile, 2 bird, 3 cat, 4 deer\n" in shown
    assert "Novel: 500 test images of 5 classes that nobody trains on\n" in shown
    assert run(f"{line} --out c.toml".split()) == 1
    assert "c.toml is there already" in capsys.readouterr().err


def test_an_unseen_domain_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    line = "data partition domains-sample --partition leave-one-domain-out --clients 5"
    assert run(f"{line} --unseen-domain sketch --classes all".split()) == 0
    shown = capsys.readouterr().out
    assert "Novel: 240 test images of 8 classes of the unseen domain 'sketch'\n" in shown
    assert run(f"{line} --unseen-domain scetch".split()) == 2
    assert "did you mean 'sketch'?" in capsys.readouterr().err


def test_the_samples_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "check", "domains-sample"]) == 0
    assert capsys.readouterr().out == (
        "domains-sample: 1,354 images of 8 classes: nothing wrong found\n"
    )
    values = as_json(capsys, "data check cifar10-sample --partition disjoint --clients 5")
    kinds = [problem["kind"] for problem in values["problems"]]
    assert kinds == ["one-class-client"]
    assert values["clients"] == ["0", "1", "2", "3", "4"]


def test_a_bad_folder_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_bad_folder(tmp_path / "bad")
    values = as_json(capsys, "data check bad --heatmap bad.png", code=1)
    assert {problem["kind"] for problem in values["problems"]} == EXPECTED
    for problem in values["problems"]:
        assert set(problem) == {"kind", "count", "examples", "advice", "level"}
        assert problem["count"] >= 1 and problem["examples"] and problem["advice"]
    assert values["clients"] == ["a", "b", "c"]
    assert Path("bad.png").exists()
    assert run(["data", "check", "bad"]) == 1
    shown = capsys.readouterr().out
    assert "ERROR: test images that are training or validation images as well (1)\n    a/t" in shown
    assert shown.endswith("bad: 173 images of 10 classes: 5 fatal, 3 errors, 14 warnings\n")


def test_noise_is_no_better_than_chance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_bad_folder(tmp_path / "bad")
    values = as_json(capsys, "data check bad --backbone pfedmma-tiny", code=1)
    assert "chance-accuracy" in {problem["kind"] for problem in values["problems"]}
    assert values["zero_shot"]["chance"] == 10.0
    assert values["zero_shot"]["accuracy"] < 25


def test_an_edited_file_trains(capsys: pytest.CaptureFixture[str]) -> None:
    line = "data partition cifar10-sample --clients 2 --shots 4 --out c.toml --quiet"
    assert run(line.split()) == 0
    file = Path("c.toml")
    file.write_text(file.read_text(encoding="utf-8").replace('id = "0"', 'id = "clinic"'))
    train = "train --preset quickstart --rounds 1 --local-epochs 1 --clients-file c.toml --out r"
    values = as_json(capsys, train)
    assert values["clients"] == ["clinic", "1"]
    file.unlink()  # the run keeps the division itself
    inspected = as_json(capsys, "inspect r")
    assert [client["images"] for client in inspected["clients"]] == [12, 8]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("data partition x", 1, "Error: there is no folder 'x'"),
        ("data partition cifar10-sample --partition iid", 2, "partition must be disjoint, dirich"),
        ("data partition cifar10-sample --clients 9", 1, "there are 9 clients and 5 classes"),
        ("data check cifar10-sample --clients-file no.toml", 1, "no.toml: No such file"),
        (
            "data check cifar10-sample --clients-file c.toml --shots 3",
            2,
            "--clients-file says already who holds which images: leave out --shots, or the file",
        ),
        ("data check cifar10-sample --pretrained x", 2, "--pretrained belongs to --backbone"),
        (
            "train --preset quickstart --clients-file c.toml --partition domain",
            2,
            "leave out --partition, or the file",
        ),
        ("train --preset quickstart --clients-file c.toml", 1, "clients file c.toml: No such file"),
    ],
)
def test_mistakes(
    arguments: str, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments.split()) == code
    printed = capsys.readouterr()
    assert message in printed.out + printed.err
    assert "Traceback" not in printed.err
