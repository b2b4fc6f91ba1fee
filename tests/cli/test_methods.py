"""`pfedmma methods`, and the page that says the same in more words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pfedmma_deploy.backbone.loading import backbone_shapes, load_backbone
from pfedmma_deploy.cli.main import run
from pfedmma_deploy.methods.registry import METHODS
from pfedmma_deploy.report.methods import hyper_parameters, method_facts

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
METHOD = pytest.mark.parametrize("name", list(METHODS))


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    """What is known of every method on ViT-B/16."""
    shapes = backbone_shapes("ViT-B-16")
    return {name: method_facts(method, shapes).to_dict() for name, method in METHODS.items()}


def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["backbone"] == "ViT-B-16"
    assert [m["name"] for m in values["methods"]] == list(METHODS)
    promised = {"name", "paper", "trained", "shared", "bytes_per_round", "folds", "exportable"}
    assert all(promised <= m.keys() for m in values["methods"])


def test_list_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", "--backbone", "pfedmma-tiny"]) == 0
    text = capsys.readouterr().out
    assert "Numbers and bytes per client and round on pfedmma-tiny" in text
    for name in METHODS:
        assert len(re.findall(rf"^{name}  ", text, re.MULTILINE)) == 2


@pytest.mark.parametrize(
    ("name", "trained", "shared", "up", "down"),
    [
        ("pfedmma", 674_560, 8_448, 33_792, 33_792),
        ("zero-shot", 0, 0, 0, 0),
        ("plora", 491_520, 245_760, 983_040, 983_040),
        ("promptfl", 16 * 512, 16 * 512, 32_768, 32_768),
        ("fedpgp", 16 * 512 + 16 * 8 + 8 * 512, 16 * 512, 32_768, 32_768),
        ("fedotp", 2 * 16 * 512, 16 * 512, 32_768, 32_768),
        # Own prompt and gate; down come ten prompts and which of the nine places are taken.
        ("pfedmoap", 16 * 512 + 4 * (128 * 128 + 128), 16 * 512, 32_768, 10 * 32_768 + 9 * 4),
        ("fedtpg", 4_206_080, 4_206_080, 4 * 4_206_080, 4 * 4_206_080),
        # Nine prompts of two vectors and nine couplings 512 -> 768.
        ("fedmaple", 3_555_072, 3_555_072, 4 * 3_555_072, 4 * 3_555_072),
    ],
)
def test_sizes_on_vit_b(
    rows: dict[str, dict[str, Any]], name: str, trained: int, shared: int, up: int, down: int
) -> None:
    assert rows[name]["parameters"] == {"trained": trained, "shared": shared}
    assert rows[name]["bytes_per_round"] == {"up": up, "down": down}


def test_one_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", "pfedmoap"]) == 0
    printed = capsys.readouterr()
    assert "pfedmoap: pFedMoAP, arXiv 2410.10114 (ICLR 2025)" in printed.out
    assert re.search(
        r"^num_experts +9 +Prompts of other clients at most", printed.out, re.MULTILINE
    )
    assert "--method pfedmoap --set context_vectors=16" in printed.err


def test_one_method_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", "fedotp", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["name"] == "fedotp"
    assert values["hyper_parameters"][1] == {
        "name": "mass",
        "default": 0.8,
        "meaning": "gamma, the share of the patches' mass that is transported.",
    }


def test_defaults_of_its_own_and_none_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", "fedtpg"]) == 0
    assert "Options with a default of their own: lr = 0.003" in capsys.readouterr().out
    assert run(["methods", "zero-shot"]) == 0
    assert "It has no hyper-parameters." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("methods promptfll", 2, "no method is called 'promptfll'; did you mean 'promptfl'?"),
        ("methods --backbone ViT-B16", 1, "open_clip knows no model named 'ViT-B16'"),
        ("methods --backbone RN50", 1, "The backbone RN50 cannot be adapted"),
    ],
)
def test_mistakes(
    capsys: pytest.CaptureFixture[str], arguments: str, code: int, message: str
) -> None:
    assert run(arguments.split()) == code
    assert message in capsys.readouterr().err


@METHOD
def test_shapes_count_as_weights_do(name: str) -> None:
    """The same sizes from a backbone without weights and from one with them."""
    shapes = method_facts(METHODS[name], backbone_shapes("pfedmma-tiny"))
    assert shapes == method_facts(METHODS[name], load_backbone("pfedmma-tiny"))


@METHOD
def test_every_hyper_parameter_says_what_it_is(name: str) -> None:
    assert all(p.meaning for p in hyper_parameters(METHODS[name]))


@METHOD
def test_the_page_has_every_method_with_its_hyper_parameters(name: str) -> None:
    sections = {s.split("\n", 1)[0]: s for s in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]}
    text = sections[name].split("\n## ")[0]
    assert METHODS[name].paper.split("arXiv ")[-1].split()[0].rstrip(",") in text or name == "local"
    named = re.findall(r"`(\w+)` \(([^)]+)\)", text)
    known = hyper_parameters(METHODS[name])
    assert [n for n, _ in named] == [p.name for p in known]
    for (_, written), parameter in zip(named, known, strict=True):
        default = parameter.default
        found = written if isinstance(default, str) else json.loads(written)
        assert found == default, parameter.name


def test_the_page_has_the_printed_table(rows: dict[str, dict[str, Any]]) -> None:
    for name, row in rows.items():
        numbers = [*row["parameters"].values(), *row["bytes_per_round"].values()]
        assert f"| {name} | " + " | ".join(f"{n:,}" for n in numbers) + " |" in PAGE
