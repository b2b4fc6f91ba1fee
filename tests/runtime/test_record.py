"""The record of answers: what is in it, answers given again, and whether anything has changed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pfedmma_deploy.cli.main import run
from pfedmma_deploy.errors import BundleError, UsageError
from pfedmma_deploy.report.drift import draw_drift, known_by_client, moving_mean
from pfedmma_deploy.runtime import Bundle, Classifier
from pfedmma_deploy.runtime.bundle import file_sha256
from pfedmma_deploy.runtime.monitor import Drift, monitor, welch
from pfedmma_deploy.runtime.record import FORMAT, bundle_sha256, read_record, replay
from tests.export.sample import CLASS_NAMES, images

pytest_plugins = ["tests.export.fixtures"]

Printed = pytest.CaptureFixture[str]


@pytest.fixture
def photos(certain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `photos` and `model`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "model").symlink_to(certain)
    for number, pixels in enumerate(images(6)):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path


def predict(arguments: str = "") -> None:
    given = f"predict photos --model model --client north --log log.jsonl --quiet {arguments}"
    assert run(given.split()) == 0


def entries() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("log.jsonl").read_text().splitlines()]


def test_a_line_has_all_that_an_answer_depends_on(photos: Path, capsys: Printed) -> None:
    predict("--accept 0.5 --compare --top 1 --json --strength 0.5")
    printed = json.loads(capsys.readouterr().out)["predictions"]
    # The record has all classes, the output as many as were asked for.
    assert [len(one["top"]) for one in printed] == [1] * 6
    found = entries()
    assert [one["client"] for one in found] == ["north", "zero-shot"] * 6
    first = found[0]
    assert set(first) == {
        *("format", "time", "image", "client", "strength", "bundle", "model", "provider"),
        *("versions", "terms", "answer", "known", "threshold", "negative", "likely"),
        "probabilities",
    }
    assert first["format"] == FORMAT and first["strength"] == 0.5
    assert first["image"] == {"path": "photos/0.png", "sha256": file_sha256(Path("photos/0.png"))}
    assert first["bundle"] == file_sha256(Path("model/manifest.json"))
    assert first["model"] == file_sha256(Path("model/vision_model.onnx"))
    assert first["terms"] == {"classes": None, "accept": 0.5, "coverage": None, "negatives": []}
    assert set(first["probabilities"]) == set(CLASS_NAMES)
    assert sum(first["probabilities"].values()) == pytest.approx(1.0)
    assert first["answer"] == printed[0]["answer"]
    assert first["known"] == printed[0]["known"]
    # The next call adds to it.
    predict()
    assert len(entries()) == 18


@pytest.mark.parametrize(
    "terms",
    ["", "--accept 0.5 --coverage 0.5", "--classes cat,spoon --negatives mud --strength 0.25"],
)
def test_answers_are_repeated(photos: Path, terms: str, capsys: Printed) -> None:
    predict(f"{terms} --batch-size 2")
    capsys.readouterr()
    assert run("replay log.jsonl --model model --json".split()) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["answers"], values["repeated"], values["others"]) == (6, 6, [])
    assert values["max_difference"] < 1e-5


def test_what_cannot_be_repeated_is_named(photos: Path, capsys: Printed) -> None:
    predict()
    Path("photos/0.png").unlink()
    Image.fromarray(images(9)[8]).save("photos/1.png")
    lines = entries()
    lines[2]["bundle"] = "0" * 64
    best = max(lines[3]["probabilities"], key=lines[3]["probabilities"].get)
    lines[3]["probabilities"][best] -= 0.01
    lines[4]["answer"] = "tree"
    del lines[5]["probabilities"][best]
    Path("log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    capsys.readouterr()
    assert run("replay log.jsonl --model model --json".split()) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["repeated"] == 0
    outcomes = [(one["line"], one["outcome"]) for one in found["others"]]
    assert outcomes == [
        *((1, "image gone"), (2, "image changed"), (3, "other bundle")),
        *((4, "differs"), (5, "differs"), (6, "differs")),
    ]
    details = [one["detail"] for one in found["others"]]
    assert details[3] == "a probability by 1.0e-02"
    assert details[4].startswith("tree -> ") and details[5] == "other classes"


def test_a_line_that_was_cut_off(photos: Path) -> None:
    predict()
    text = Path("log.jsonl").read_text()
    Path("log.jsonl").write_text(text[:-30])
    predict()
    found = list(read_record(Path("log.jsonl")))
    # The sixth line is lost, what came later is not.
    assert [number for number, entry in found if entry is None] == [6]
    assert len(found) == 12
    with pytest.raises(BundleError, match=r"Line 6 of log\.jsonl is no recorded answer .*: it was"):
        list(replay(Path("log.jsonl"), Classifier.load("model", "cpu")))


def test_wrong_files(photos: Path, capsys: Printed) -> None:
    for command in ("replay", "monitor"):
        assert run([command, "missing.jsonl", "--model", "model"]) == 2
        assert "There is no record missing.jsonl: `pfedmma predict --log" in capsys.readouterr().err
    Path("folder").mkdir()
    assert run("predict photos --model model --log folder --quiet".split()) == 2
    assert "The record folder cannot be written" in capsys.readouterr().err
    predict("--classes cat,dog")
    assert run("monitor log.jsonl --model model".split()) == 2
    assert "log.jsonl has no answer of model among its own class names" in capsys.readouterr().err
    assert run("monitor log.jsonl --model model --chance 1".split()) == 2
    assert "--chance is a share above 0 and below 1, found 1" in capsys.readouterr().err


def test_welch_by_hand() -> None:
    """Means 3 and 2, variances 2.5 of 5 and 1 of 5: t = 1 / sqrt(0.5 + 0.2), 6.7 degrees."""
    found = welch(np.array([1.0, 2, 3, 4, 5]), 2.0, 1.0, 5, 0.05)
    assert found is not None
    assert found.now == 3.0 and found.t == pytest.approx(1 / 0.7**0.5)
    # Student's t of six degrees at 97.5 %.
    assert found.limit == pytest.approx(2.447, rel=0.01) and not found.is_alarm
    assert welch(np.array([9.0, 9, 9, 9]), 2.0, 1.0, 5, 0.05) is None
    assert welch(np.array([9.0] * 9), 2.0, 1.0, 4, 0.05) is None
    same = welch(np.array([2.0] * 9), 2.0, 0.0, 5, 0.05)
    assert same == Drift(2.0, 2.0, 0.0, 1.0)
    other = welch(np.array([1.0] * 9), 2.0, 0.0, 5, 0.05)
    assert other is not None and other.is_alarm


def entry(known: float | None, confidence: float, **changes: Any) -> dict[str, Any]:
    rest = (1 - confidence) / 3
    shares = dict(zip(CLASS_NAMES, (confidence, rest, rest, rest), strict=True))
    plain = {"client": "north", "answer": CLASS_NAMES[0], "known": known, "probabilities": shares}
    return {**plain, "terms": {"classes": None}, **changes}


def test_the_same_kind_of_images_alarms_rarely_and_another_kind_always(certain: Path) -> None:
    """200 draws from what the client was calibrated on, of 10 images, which are drawn anew too."""
    manifest = Bundle.open(certain).manifest
    info = manifest.clients[1]
    assert info.calibration is not None
    rng = np.random.default_rng(0)
    alarms = {0.0: 0, 8.0: 0}
    for _ in range(200):
        val = rng.normal(4.0, 2.0, 10), rng.uniform(0.4, 0.9, 10)
        drawn = replace(
            info.calibration,
            known_mean=float(val[0].mean()),
            known_deviation=float(val[0].std(ddof=1)),
            confidence_mean=float(val[1].mean()),
            confidence_deviation=float(val[1].std(ddof=1)),
        )
        own = replace(manifest, clients=(replace(info, calibration=drawn),))
        for shift in alarms:
            shown = []
            for _ in range(40):
                shown.append(entry(rng.normal(4.0 - shift, 2.0), rng.uniform(0.4, 0.9)))
            (state,) = monitor(shown, own)
            alarms[shift] += state.is_alarm
    assert alarms[0.0] <= 10 and alarms[8.0] == 200


def test_rates_of_a_record(certain: Path) -> None:
    manifest = Bundle.open(certain).manifest
    first, second = CLASS_NAMES[:2]
    shown = [
        *(entry(1.0, 0.7) for _ in range(5)),
        *(entry(1.0, 0.7, answer="unknown") for _ in range(3)),
        *(entry(1.0, 0.7, answer=second) for _ in range(2)),
        entry(1.0, 0.7, terms={"classes": ["cat"]}),
        entry(None, 0.7, client="0"),
    ]
    north, other = monitor(shown, manifest)
    assert (north.answers, north.unknown) == (10, 30.0)
    assert north.classes == {first: 50.0, "unknown": 30.0, second: 20.0}
    assert other.client == "0" and other.known is other.confidence is None
    assert json.loads(json.dumps(north.to_dict()))["alarm"] is north.is_alarm


def test_the_command_ends_with_4_after_an_alarm(photos: Path, capsys: Printed) -> None:
    predict()
    capsys.readouterr()
    # The six images are those that the scores of the calibration are about.
    assert run("monitor log.jsonl --model model --chance 0.0001".split()) == 0
    assert "as before" in capsys.readouterr().out
    lines = entries()
    for one in lines:
        one["known"] -= 50
    Path("log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines) + "cut off")
    assert run("monitor log.jsonl --model model --json".split()) == 4
    printed = capsys.readouterr()
    values = json.loads(printed.out)
    assert values["alarms"] == ["north"] and values["clients"][0]["known"]["t"] < -10
    assert "1 lines are cut off or of another bundle, and left out" in printed.err


def test_the_picture(photos: Path, capsys: Printed) -> None:
    predict("--compare")
    assert run("monitor log.jsonl --model model --chance 0.0001 --plot drift.svg".split()) == 0
    drawn = Path("drift.svg").read_text()
    assert "<svg" in drawn
    manifest = Bundle.open("model").manifest
    found = known_by_client(entries(), manifest)
    assert [info.id for info in found] == ["zero-shot", "north"]
    assert [len(scores) for scores in found.values()] == [6, 6]
    capsys.readouterr()
    assert run("monitor log.jsonl --model model --chance 0.0001 --plot none/a.png".split()) == 2
    assert "The picture none/a.png cannot be written" in capsys.readouterr().err
    with pytest.raises(UsageError, match="No calibrated client has answered: there is nothing to"):
        draw_drift([], manifest, Path("empty.png"))


def test_moving_mean_by_hand() -> None:
    """The mean of all so far, then of the last 25: of 1 to 30 at the end 6 to 30."""
    found = moving_mean([float(n) for n in range(1, 31)])
    assert found[:3] == [1.0, 1.5, 2.0] and found[24:26] == [13.0, 14.0] and found[-1] == 18.0


def test_the_hash_is_the_manifests(photos: Path, tmp_path: Path) -> None:
    copy = shutil.copytree("model", tmp_path / "copy")
    before = bundle_sha256(Bundle.open(copy))
    raw = json.loads((copy / "manifest.json").read_text())
    raw["clients"][1]["default_strength"] = 0.5
    (copy / "manifest.json").write_text(json.dumps(raw))
    assert bundle_sha256(Bundle.open(copy)) != before
    with pytest.raises(UsageError):
        next(read_record(tmp_path / "none"))
