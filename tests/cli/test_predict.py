"""`pfedmma predict`: what it reads, what it writes, and how it ends."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pfedmma_deploy.cli import predict as module
from pfedmma_deploy.cli.main import run
from pfedmma_deploy.cli.predict import printable, write_csv
from pfedmma_deploy.runtime import Classifier, ClassScore, Prediction
from pfedmma_deploy.types import Skipped
from tests.export.sample import CLASS_NAMES, images

pytest_plugins = ["tests.export.fixtures"]

Printed = pytest.CaptureFixture[str]


@pytest.fixture
def photos(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: `photos/` with four images in two folders, and `model`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(bundle)
    for number, pixels in enumerate(images(4)):
        folder = tmp_path / "photos" / ("even", "odd")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path


NAMES = ["photos/even/0.png", "photos/even/2.png", "photos/odd/1.png", "photos/odd/3.png"]


def predict(arguments: str) -> int:
    return int(run(["predict", "--model", "model", "--client", "north", *arguments.split()]))


def damage(*paths: str) -> None:
    for path in paths:
        Path(path).write_bytes(b"no image")


def test_a_table_with_zero_shot_beside(photos: Path, capsys: Printed) -> None:
    assert predict("photos --compare --top 1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["Image", "Client", "north", "Zero-shot"]
    classifier = Classifier.load("model", "cpu")
    for line, name in zip(lines[1:], NAMES, strict=True):
        (mine,), (plain,) = classifier.predict(name, "north"), classifier.predict(name, 0)
        shown = [f"{one.top[0].name} {one.top[0].probability:.0%}" for one in (mine, plain)]
        assert line.split("  ", 1)[0] == name
        assert [part.strip() for part in line.split("  ")[1:] if part.strip()] == shown


def test_json_lines_and_json_say_the_same(photos: Path, capsys: Printed) -> None:
    damage("photos/even/1.jpg")
    assert predict("photos --compare --json") == 3
    whole = json.loads(capsys.readouterr().out)
    assert set(whole) == {"predictions", "skipped"}
    assert predict("photos --compare --format jsonl") == 3
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["path"] for line in lines] == [NAMES[0], "photos/even/1.jpg", *NAMES[1:]]
    skipped = lines.pop(1)
    assert lines == whole["predictions"]
    assert [{"path": skipped["path"], "reason": skipped["skipped"]}] == whole["skipped"]
    assert len(lines[0]["top"]) == len(lines[0]["zero_shot"]) == 3


def test_at_a_strength(photos: Path, capsys: Printed) -> None:
    assert predict("photos/odd --strength 0.5 --json") == 0
    found = json.loads(capsys.readouterr().out)["predictions"]
    wanted = Classifier.load("model", "cpu").predict(["photos/odd/1.png"], "north", strength=0.5)
    assert [one["strength"] for one in found] == [0.5, 0.5]
    best = found[0]["top"][0]
    assert best["class"] == wanted[0].top[0].name
    assert best["probability"] == pytest.approx(wanted[0].top[0].probability, abs=1e-6)
    assert predict("photos/odd --json") == 0
    found = json.loads(capsys.readouterr().out)["predictions"]
    assert [one["strength"] for one in found] == [1.0, 1.0]
    assert predict("photos/odd --strength 2") == 2
    assert "A strength is a number from 0 (zero-shot)" in capsys.readouterr().err


def test_unknown_in_every_format(photos: Path, certain: Path, capsys: Printed) -> None:
    (photos / "model").unlink()
    (photos / "model").symlink_to(certain)
    found = Classifier.load("model", "cpu").predict(NAMES, "north", accept=0.5, coverage=0.5)
    answers = [one.answer for one in found]
    assert "unknown" in answers and set(answers) != {"unknown"}
    terms = "photos --accept 0.5 --coverage 0.5 --compare"
    assert predict(f"{terms} --json") == 0
    values = json.loads(capsys.readouterr().out)["predictions"]
    assert [one["answer"] for one in values] == answers
    assert values[0]["known"] == pytest.approx(found[0].verdict.known, abs=1e-4)
    assert values[0]["threshold"] == pytest.approx(found[0].verdict.threshold, abs=1e-6)
    assert values[0]["likely"] == list(found[0].verdict.likely or ())
    assert set(values[0]["zero_shot_verdict"]) == {"answer", "known", "threshold", "likely"}
    assert predict(f"{terms} --format csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["answer"] for row in rows] == answers
    assert rows[0]["likely"] == "; ".join(found[0].verdict.likely or ())
    assert float(rows[0]["zero_shot_known"]) == pytest.approx(
        values[0]["zero_shot_verdict"]["known"], abs=1e-4
    )
    assert predict(f"{terms} --top 1") == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    for line, one in zip(lines, found, strict=True):
        best = f"{one.top[0].name} {one.top[0].probability:.0%}"
        shown = f"unknown ({best})" if one.answer == "unknown" else best
        assert f"  {shown} {{{', '.join(one.verdict.likely or ())}}}" in line


def test_too_few_validation_images_are_said(photos: Path, certain: Path, capsys: Printed) -> None:
    (photos / "model").unlink()
    shutil.copytree(certain, photos / "model")
    raw = json.loads(Path("model/manifest.json").read_text())
    raw["clients"][1]["calibration"] |= {"images": 4, "own_class": [0.2, 0.3, 0.4, 0.5]}
    Path("model/manifest.json").write_text(json.dumps(raw))
    assert predict("photos --accept 0.5 --coverage 0.9 --json") == 0
    printed = capsys.readouterr()
    said = "note: client north was calibrated on 4 images, too few "
    assert said + "to call anything unknown" in printed.err
    assert said + "for --coverage 0.9: its sets hold every class" in printed.err
    for one in json.loads(printed.out)["predictions"]:
        assert one["answer"] != "unknown" and len(one["likely"]) == len(CLASS_NAMES)
    assert predict("photos --quiet") == 0
    assert "too few" not in capsys.readouterr().err


def test_negatives_need_no_calibration(photos: Path, capsys: Printed) -> None:
    assert predict("photos --classes cat --negatives mud,fog,night --json") == 0
    values = json.loads(capsys.readouterr().out)["predictions"]
    for one in values:
        assert (one["answer"] == "unknown") == ("negative" in one)
        assert one["known"] is one["threshold"] is None
    assert predict("photos --accept 0.9") == 2
    assert "Client 'north' of model is not calibrated" in capsys.readouterr().err
    assert predict("photos --accept 2") == 2
    assert "accept should be above 0 and at most 1, found 2" in capsys.readouterr().err


@pytest.mark.parametrize("compare", [False, True])
def test_csv(photos: Path, capsys: Printed, compare: bool) -> None:
    damage("photos/even/1.jpg")
    arguments = "photos --top 9 --batch-size 2 --format csv" + " --compare" * compare
    assert predict(arguments) == 3
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    models = ["", "zero_shot_"] if compare else [""]
    assert rows[0] == [
        "path",
        "client",
        *(f"{m}{what}_{n}" for m in models for n in "1234" for what in ("class", "probability")),
        "skipped",
    ]
    assert {len(row) for row in rows} == {len(rows[0])}
    assert [row[0] for row in rows[1:]] == [NAMES[0], "photos/even/1.jpg", *NAMES[1:]]
    first = dict(zip(rows[0], rows[1], strict=True))
    assert first["client"] == "north" and first["skipped"] == ""
    assert {first[f"class_{n}"] for n in "1234"} == set(CLASS_NAMES)
    assert sum(float(first[f"probability_{n}"]) for n in "1234") == pytest.approx(1, abs=1e-5)
    assert rows[2][1:-1] == [""] * (len(rows[0]) - 2) and "not a JPEG" in rows[2][-1]


def test_csv_rows_are_quoted_and_no_formulas() -> None:
    stream = io.StringIO()
    scores = (ClassScore("=1+1", 0.75), ClassScore('cat, "big"', 0.25))
    outcomes = [(Prediction("=cmd.jpg", "@home", scores),), Skipped("a,b.jpg", "-1")]
    write_csv(outcomes, stream, 2, compare=False)
    assert stream.getvalue().splitlines()[1:] == [
        """./=cmd.jpg,'@home,'=1+1,0.750000,"cat, ""big\""",0.250000,""",
        '"a,b.jpg",,,,,,\'-1',
    ]
    assert list(csv.reader(io.StringIO(stream.getvalue())))[1][4] == 'cat, "big"'


def test_names_that_no_terminal_obeys() -> None:
    assert printable("caf\u00e9 \u65e5 .jpg") == "caf\u00e9 \u65e5 .jpg"
    assert printable("\x1b[31m\n\udcff.jpg") == r"\x1b[31m\n\xff.jpg"


@pytest.mark.skipif(sys.platform != "linux", reason="needs names that are no text")
def test_names_that_are_no_text(photos: Path, capsys: Printed) -> None:
    os.rename(b"photos/odd/1.png", b"photos/odd/\xff.png")  # noqa: PTH104
    for form in ("--json", "--format csv", "--format jsonl", "--format table"):
        assert predict(f"photos/odd {form}") == 0
        assert r"photos/odd/\xff.png".replace("\\", "\\" * (1 + ("json" in form))) in (
            capsys.readouterr().out
        )


def test_patterns_and_folders(photos: Path, capsys: Printed) -> None:
    assert predict("photos/**/[02].png photos/odd --quiet --format csv") == 0
    printed = capsys.readouterr()
    assert [line.split(",")[0] for line in printed.out.splitlines()[1:]] == NAMES
    assert printed.err == ""
    assert predict("photos/*.gif") == 1
    assert capsys.readouterr().err.startswith("Error: the pattern photos/*.gif matches no images")


def test_exit_codes(photos: Path, capsys: Printed) -> None:
    damage("broken.png")
    assert predict("photos") == 0
    assert predict("photos broken.png none.png") == 3
    assert capsys.readouterr().err.endswith(
        "skipped none.png: No such file or directory\n2 of 6 images could not be read\n"
    )
    assert predict("broken.png none.png --json") == 1
    assert len(json.loads(capsys.readouterr().out)["skipped"]) == 2
    assert predict("none.png") == 1
    assert capsys.readouterr().out == ""


def test_a_file_by_its_ending(photos: Path, capsys: Printed) -> None:
    for ending, start in ((".csv", "path,client"), (".jsonl", '{"path"'), (".txt", "Image  ")):
        out = Path(f"answers{ending}")
        out.write_text("older")
        assert predict(f"photos --out {out}") == 0
        printed = capsys.readouterr()
        assert (printed.out, printed.err) == ("", f"Wrote {out}\n")
        assert out.read_text().startswith(start)
        assert all(name in out.read_text() for name in NAMES)
    assert predict("photos --out answers.txt --format csv") == 0
    assert Path("answers.txt").read_text().startswith("path,client")
    assert sorted(p.name for p in photos.iterdir() if p.is_file()) == [
        "answers.csv",
        "answers.jsonl",
        "answers.txt",
    ]


def test_a_link_stays_a_link(photos: Path) -> None:
    Path("elsewhere").mkdir()
    Path("answers.csv").symlink_to("elsewhere/real.csv")
    assert predict("photos --quiet --out answers.csv") == 0
    assert Path("answers.csv").is_symlink()
    assert Path("elsewhere/real.csv").read_text().startswith("path,client")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_half_written(
    photos: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail_later(outcomes: Any, *rest: Any, **more: Any) -> None:
        def failing() -> Any:
            for outcome in outcomes:
                yield outcome
                if isinstance(outcome, tuple) and outcome[0].source == NAMES[2]:
                    raise error

        write_csv(failing(), *rest, **more)

    monkeypatch.setattr(module, "write_csv", fail_later)
    Path("answers.csv").write_text("older")
    assert predict("photos --out answers.csv") == (1 if isinstance(error, OSError) else 130)
    assert Path("answers.csv").read_text() == "older"
    assert [p.name for p in photos.iterdir() if p.is_file()] == ["answers.csv"]
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--json --format csv", 2, "--json prints one object on stdout: leave out --format"),
        ("--json --out x.csv", 2, "--json prints one object on stdout"),
        ("--out photos", 2, "--out photos is no regular file: name a new one"),
        ("--out none/x.csv", 2, "--out none/x.csv: there is no folder none; make it first"),
        ("--format xml", 2, "'xml' is not one of 'table', 'csv', 'jsonl'"),
        ("--batch-size 0", 2, "Invalid value for '--batch-size'"),
        ("--threads 0", 2, "Invalid value for '--threads'"),
        ("--device tpu", 2, "Device 'tpu' is unknown: expected auto, cpu, cuda, tensorrt"),
    ],
)
def test_mistakes(photos: Path, capsys: Printed, arguments: str, code: int, message: str) -> None:
    assert predict(f"photos {arguments}") == code
    printed = capsys.readouterr()
    assert message in printed.err and "Traceback" not in printed.err
    assert printed.out == ""
    assert [p.name for p in photos.iterdir() if p.is_file()] == []


def test_rows_come_while_later_images_are_still_to_be_found(
    photos: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is printed of an endless folder before it is interrupted."""
    from pfedmma_deploy.runtime import sources

    calls = 0

    def endless(places: Any) -> Any:
        nonlocal calls
        calls += 1
        yield from map(Path, NAMES)
        while calls > 1:  # the first call only counts
            yield Path(NAMES[0])

    def stop(outcomes: Any, *rest: Any, **more: Any) -> None:
        def stopping() -> Any:
            for row, outcome in enumerate(outcomes, 1):
                yield outcome
                if row == 100:
                    raise KeyboardInterrupt

        write_csv(stopping(), *rest, **more)

    monkeypatch.setattr(sources, "find_images", endless)
    monkeypatch.setattr(module, "write_csv", stop)
    assert predict("photos --format csv --batch-size 4 --threads 1") == 130
    assert len(capsys.readouterr().out.splitlines()) == 101


HEAVY = {"torch", "torchvision", "open_clip", "timm", "onnx", "pandas", "matplotlib", "gradio"}


def test_predicting_imports_nothing_heavy(photos: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-X",
            "importtime",
            "-c",
            "import sys; from pfedmma_deploy.cli import main; main()",
            *"predict photos --model model --client north --compare --format csv".split(),
        ],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"},
    )
    imported = {
        line.rsplit("|", 1)[1].strip().partition(".")[0]
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "onnxruntime" in imported and "rich" not in imported
    assert not imported & HEAVY
    assert len(done.stdout.splitlines()) == 5
