"""The commands on a folder of one's own images, with a backbone of a few thousand parameters."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pfedmma_deploy.cli.main import run
from pfedmma_deploy.federated.personalize import DEFAULT_EPOCHS
from tests import tinyclip

CLASSES = ("apple", "bread", "chair", "drum")
ACCURACY = {"local", "base", "novel", "hm2", "hm3", "all"}


def write_images(folder: Path, classes: tuple[str, ...], count: int) -> None:
    """Noise of a colour per class: `folder/<class>/<n>.png`."""
    rng = np.random.default_rng(1)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 100, (20, 24, 3)) + np.array([50 * number, 90, 30])
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with photos, a broken one among them, and a finished run."""
    place = tmp_path_factory.mktemp("user")
    write_images(place / "photos", CLASSES, 12)
    (place / "photos" / "apple" / "broken.jpg").write_bytes(b"no image")
    tinyclip.register()
    before = Path.cwd()
    os.chdir(place)
    options = (
        "--backbone test-clip --pretrained random --clients 2 --partition dirichlet --shots 0 "
        "--rounds 2 --local-epochs 1 --lr 0.01 --set scale=0.1 --set bottleneck_dim=4"
    )
    assert run(f"train --data photos --quiet {options}".split()) == 0
    yield place
    os.chdir(before)


def as_json(capsys: pytest.CaptureFixture[str], arguments: str, code: int = 0) -> dict[str, Any]:
    """The one JSON object that a command prints."""
    assert run([*arguments.split(), "--json"]) == code
    values = json.loads(capsys.readouterr().out)
    assert isinstance(values, dict)
    return values


def test_train_says_what_differential_privacy_costs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        "train --data photos --backbone test-clip --pretrained random --clients 2 --shots 0"
        " --rounds 1 --local-epochs 1 --dp-clip 0.5 --dp-noise 2"
    )
    values = as_json(capsys, f"{options} --out private-json")
    cost = values["privacy"]["epsilon"]
    assert (values["privacy"]["clip"], values["privacy"]["noise"]) == (0.5, 2.0)
    assert run([*options.split(), "--out", "private"]) == 0
    shown = capsys.readouterr()
    assert f"epsilon {cost:.2f} at delta 1e-05 for the whole run (rounds: 1" in shown.err
    assert f"Differential privacy of what is shared: epsilon {cost:.2f} at delta" in shown.out
    assert run(f"{options} --aggregate median --out refused".split()) == 2
    assert "which --aggregate median does not take" in capsys.readouterr().err


def test_the_run_is_named_after_the_data(folder: Path) -> None:
    assert (folder / "runs" / "photos" / "manifest.json").exists()


def test_a_finished_run_is_resumed_without_harm(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = as_json(capsys, "train --resume")
    assert values["run"] == "runs/photos"
    assert values["clients"] == ["0", "1"] and values["rounds"] == 2
    assert values["bytes_up_per_client_round"] == values["bytes_down_per_client_round"] > 0


def test_a_resumed_run_keeps_its_options(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train --resume --out runs/photos --rounds 3".split()) == 2
    assert "was started with rounds = 2, not 3" in capsys.readouterr().err


def test_a_taken_folder_is_not_overwritten(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = "train --data photos --backbone test-clip --pretrained random --clients 2"
    code = run(f"{arguments} --partition dirichlet --out runs/photos".split())
    assert code == 1
    assert "runs/photos already holds a run" in capsys.readouterr().err


def test_evaluate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = as_json(capsys, "evaluate")
    losing = {"worst", "losing_share", "losing_clients"}
    assert set(values) == {"run", "zero_shot", "personalized", "clients", "seconds"} | losing
    assert set(values["zero_shot"]) == set(values["personalized"]) == ACCURACY
    assert set(values["clients"]) == {"0", "1"}
    assert set(values["clients"]["0"]) == {"zero_shot", "personalized", "strength"}
    trained = as_json(capsys, "evaluate --strength 1")["clients"]
    assert {client["strength"] for client in trained.values()} == {1.0}
    assert run("evaluate --strength 1.6".split()) == 2
    assert "A strength is a number from 0 (zero-shot)" in capsys.readouterr().err
    assert run(["evaluate"]) == 0
    printed = capsys.readouterr().out
    assert "gain" in printed and "Worst client of each: local " in printed
    assert "Clients that lose more than a point of base or novel: " in printed


def test_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = as_json(capsys, "report")
    assert set(values) == {"runs", "intervals", "out", "seconds"}
    (found,) = values["runs"]
    assert found["folder"] == "runs/photos"
    page = (folder / values["out"]).read_text("utf-8")
    assert values["out"] == "report.html" and page.startswith("<!DOCTYPE html>")
    assert run("report runs/photos --out pages/mine.html".split()) == 0
    printed = capsys.readouterr()
    assert "photos" in printed.out and "Written: pages/mine.html" in printed.err
    assert run("report runs/photos runs/photos".split()) == 2
    assert "is named twice" in capsys.readouterr().err


def test_evaluate_a_backbone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = as_json(capsys, "evaluate --data photos --backbone test-clip --pretrained random")
    assert 0 <= values["accuracy"] <= 100 and values["images"] > 0
    assert values["domains"] == {} and set(values["classes"]) == set(CLASSES)


def test_personalize(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = as_json(capsys, "personalize --client 1 --epochs 1")
    assert values["client"] == "1" and values["new"] is False
    assert set(values["zero_shot"]) == set(values["before"]) == set(values["after"]) == ACCURACY


def test_personalize_a_new_client(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(folder / "more", ("apple", "drum"), 10)
    values = as_json(capsys, "personalize --client shop --data more --epochs 1")
    assert values["client"] == "shop" and values["new"] is True
    assert (folder / "runs/photos/clients/shop/adapter.safetensors").exists()
    assert run("personalize --client shpo".split()) == 2
    assert "did you mean 'shop'?" in capsys.readouterr().err


def test_inspect_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = as_json(capsys, "inspect runs/photos")
    assert values["kind"] == "run" and values["classes"] == list(CLASSES)
    assert set(values["parameters"]) == {"shared", "local", "frozen"}
    assert set(values["bytes_per_round"]) == {"up", "down"}
    assert all(len(file["sha256"]) == 64 for file in values["files"].values())
    assert run(["inspect"]) == 0
    assert "Base classes: apple, bread" in capsys.readouterr().out


def test_export_then_predict(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = as_json(capsys, "export")
    assert report["bundle"] == "exports/photos"
    assert report["clients"][:3] == ["zero-shot", "0", "1"]
    assert set(report["files"]) >= {"vision_model.onnx", "text_model.onnx", "manifest.json"}
    assert set(report["parity"]) == {"max_abs_error", "top1_agreement", "images"}

    values = as_json(capsys, "predict photos/apple --client 1 --compare --top 2", code=3)
    assert [entry["path"] for entry in values["skipped"]] == ["photos/apple/broken.jpg"]
    assert len(values["predictions"]) == 12
    first = values["predictions"][0]
    assert first["path"] == "photos/apple/0.png" and first["client"] == "1"
    assert len(first["top"]) == len(first["zero_shot"]) == 2
    assert set(first["top"][0]) == {"class", "probability"}

    typed = as_json(capsys, "predict photos/drum/0.png --client 0 --classes kite,lamp")
    assert {answer["class"] for answer in typed["predictions"][0]["top"]} == {"kite", "lamp"}

    assert run(["predict", "photos/drum/0.png"]) == 0
    printed = capsys.readouterr()
    assert "photos/drum/0.png" in printed.out and "note: zero-shot" in printed.err

    described = as_json(capsys, "inspect exports/photos")
    assert described["strength"] == "exact"
    for client in described["clients"][1:]:
        stored = json.loads(
            (folder / f"runs/photos/clients/{client['id']}/adapter_config.json").read_text()
        )
        assert client["default_strength"] == stored["default_strength"]
    assert described["kind"] == "bundle" and described["clients"][0]["id"] == "zero-shot"

    history = json.loads((folder / "exports/photos/manifest.json").read_text())["history"]
    evaluated = as_json(capsys, "evaluate")["clients"]["1"]["personalized"]
    assert history["rounds"] == 2 and sum(history["clients"]["1"]["num_examples"]) > 0
    assert history["clients"]["1"]["personalized"] == {
        name: evaluated[name] for name in ("local", "base", "novel", "all")
    }


@pytest.mark.slow
def test_export_of_one_client(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = as_json(capsys, "export --client 0 --classifier")
    assert report["clients"] == ["zero-shot", "0"]
    assert "classifier.onnx" in report["files"]
    assert run("predict photos/drum/0.png --model exports/photos-0".split()) == 0
    assert "Client 0" in capsys.readouterr().out


def test_a_client_leaves_and_joins(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Out of the bundle, and in again from its folder of the run, whose projections it shares."""
    listed = as_json(capsys, "bundle list")
    assert listed["clients"][:3] == ["zero-shot", "0", "1"]
    removed = as_json(capsys, "bundle remove 1 --from exports/photos")
    assert removed["clients"][-1] != "1"
    values = as_json(capsys, "bundle add runs/photos/clients/1 --to exports/photos")
    assert values["clients"][-1] == "1" and "1" in values["parity"]["added"]
    assert as_json(capsys, "bundle list exports/photos") == values
    assert set(values) == set(removed) == {"bundle", "clients", "files", "parity", "quality"}
    assert run("bundle list".split()) == 0
    assert "2  shop       apple, drum" in capsys.readouterr().out


def test_bundles_have_a_curve_and_answer_at_every_strength(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export --strength 0.5".split()) == 2
    said = capsys.readouterr().err
    assert "a bundle answers at every strength" in said and "predict --strength 0.5" in said
    manifest = json.loads(Path("exports/photos/manifest.json").read_text())
    own = {client["id"]: client["default_strength"] for client in manifest["clients"]}
    for id, client in manifest["history"]["clients"].items():
        curve = client["curve"]
        if client["zero_shot"] is None:
            assert curve == [], "it joined with images of its own"
            continue
        points = {point["strength"]: point for point in curve}
        assert list(points) == sorted({0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, own[id]})
        for point, side in ((points[0], "zero_shot"), (points[own[id]], "personalized")):
            figures = {name: value for name, value in point.items() if name != "strength"}
            assert client[side] == figures
    card = Path("exports/photos/README.md").read_text()
    assert "| strength | 0 | 0.25 | 0.5 | 0.75 | 1 | 1.25 | 1.5 |" in card


def test_open_clip_weights_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export --format open_clip".split()) == 1
    assert "ReLU" in capsys.readouterr().err


def test_only_unreadable_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict photos/apple/broken.jpg none.jpg --client 0".split()) == 1
    printed = capsys.readouterr().err
    assert "skipped photos/apple/broken.jpg: " in printed and "skipped none.jpg: " in printed
    (folder / "empty").mkdir(exist_ok=True)
    assert run("predict empty --client 0".split()) == 1
    assert "Error: the folder empty holds no images" in capsys.readouterr().err


def test_documented_default_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["personalize", "--help"]) == 0
    assert f"[default: {DEFAULT_EPOCHS};" in capsys.readouterr().out
