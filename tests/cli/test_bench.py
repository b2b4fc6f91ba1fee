"""`pfedmma bench`: one JSON object, tables, files, and mistakes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pfedmma_deploy.benchmark.options import InferenceOptions
from pfedmma_deploy.benchmark.report import Row, new_row
from pfedmma_deploy.cli.main import run

ROWS = [
    new_row(
        "rate", "tiny", {"name": "onnxruntime fp32", "precision": "fp32"},
        batch_size=8,
        images_per_second=250.0,
    ),
    new_row(
        "rate", "tiny", {"name": "pfedmma fp32", "precision": "fp32", "clients": 100},
        batch_size=8,
        images_per_second=500.0,
        quartiles=[400.0, 600.0],
        peer="onnxruntime fp32",
        ratio=2.0,
        ratios={"onnxruntime fp32": {"median": 2.0, "low": 1.9, "high": 2.1}},
    ),
    new_row(
        "rate", "tiny", {"name": "torch.compile fp32", "precision": "fp32"}, reason="no compiler"
    ),
]  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[InferenceOptions]:
    """The benchmark replaced by rows made up here; what it was asked for is kept."""
    found: list[InferenceOptions] = []

    def bench(options: InferenceOptions, progress: object) -> Iterator[Row]:
        found.append(options)
        yield from ROWS

    monkeypatch.setattr("pfedmma_deploy.benchmark.inference.bench_inference", bench)
    monkeypatch.chdir(tmp_path)
    return found


def test_json(asked: list[InferenceOptions], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "bench --backbone ViT-B-32,ViT-B-16 --batch-sizes 1,64 --device cpu --threads 3"
    assert run([*arguments.split(), "--precision", "int8", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert set(values) == {"rows", "environment"}
    assert values["rows"][1]["images_per_second"] == 500.0 and values["rows"][1]["ratio"] == 2.0
    assert values["rows"][2]["reason"] == "no compiler"
    assert values["environment"]["threads"] == 3
    (options,) = asked
    assert options.backbones == ("ViT-B-32", "ViT-B-16") and options.batch_sizes == (1, 64)
    assert options.precisions == ("int8",) and options.threads == 3


def test_tables_and_files(
    asked: list[InferenceOptions], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run("bench --device cpu --out tables".split()) == 0
    printed = capsys.readouterr()
    assert "pfedmma fp32          100      8       500  400 to 600" in printed.out
    assert "Written: tables/inference-" in printed.err
    (markdown,) = (tmp_path / "tables").glob("inference-*.md")
    text = markdown.read_text(encoding="utf-8")
    assert "## tiny: rate of the model on the device" in text
    assert "Made by `pfedmma bench --backbone pfedmma-tiny --measure rate,end-to-end" in text
    assert "| pfedmma fp32 | 100 | 8 | 500 | 400 to 600 | 2.00 |" in text
    assert "Not measured: torch.compile fp32: no compiler" in text
    values = json.loads(markdown.with_suffix(".json").read_text(encoding="utf-8"))
    assert len(values["rows"]) == 3
    # Defaults of a CPU.
    assert asked[0].precisions == ("fp32", "int8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--batch-sizes 1,many", "--batch-sizes takes whole numbers such as 1,8,32"),
        ("--precision int4", "--precision must be among fp32, fp16, int8, not 'int4'"),
        ("--measure speed", "measurement must be among rate, end-to-end, load, clients"),
        ("--rounds 0", "rounds must be 1 or more, not 0"),
        ("--device gpu", "Device 'gpu' is unknown"),
        ("--train --batch-sizes 1", "--train measures rounds: --batch-sizes is for inference"),
    ],
)
def test_mistakes(
    arguments: str,
    message: str,
    asked: list[InferenceOptions],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["bench", *arguments.split()]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == "" and not asked
