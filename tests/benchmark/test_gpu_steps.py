"""`benchmarks/gpu.sh`: all its steps on the CPU, what they count, and what the summary says."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import inference_table
from benchmarks.gpu import __main__ as steps
from benchmarks.gpu import inference, photos, summary, training
from benchmarks.gpu.plan import FULL, NAIVE_BF16, Plan, small
from pfedmma_deploy.benchmark import inference as package_inference
from pfedmma_deploy.benchmark.report import Row
from pfedmma_deploy.benchmark.subjects import Subject
from pfedmma_deploy.benchmark.training import NAIVE, OURS, TrainingSeconds, TrainingTask, Way
from pfedmma_deploy.runtime.providers import model_inputs
from tests.tinyclip import register

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/gpu.sh"


@pytest.fixture
def plan(export_once: None, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The small form on a CLIP of a few thousand parameters, on the CPU."""
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setitem(inference_table.SIZES, "cpu", 64)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return replace(small(), backbones=(register(),))


def measured(step: steps.Step, plan: Plan, scratch: Path) -> list[Row]:
    """The rows that a step reports."""
    rows: list[Row] = []
    step(plan, scratch, rows.append)
    # As they are written: nothing that JSON lacks.
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    return rows


# Inference.


def test_the_peak_of_every_precision(plan: Plan, tmp_path: Path) -> None:
    machine, copy, *products = measured(steps.peak, plan, tmp_path)
    assert machine["measure"] == "environment" and machine["gpu"] is None
    assert copy["name"] == "torch's copy" and copy["bytes_per_second"] > 0
    assert [row["name"] for row in products] == [
        "torch's matmul fp32", "torch's matmul fp16", "torch's matmul bf16",
    ]  # fmt: skip
    assert all(row["flop_per_second"] > 0 for row in products)


def test_rates_of_each_form_beside_its_peers(plan: Plan, tmp_path: Path) -> None:
    plan = replace(plan, forms=(("portable", "fp32"), ("portable", "fp16")), batch_sizes=(2,))
    assert measured(steps.STEPS["export"], plan, tmp_path) == []
    rows = measured(steps.STEPS["rates"], plan, tmp_path)
    assert [row["name"] for row in rows] == [
        "torch eager fp32", "torch eager fp16", "torch eager bf16", "matmul fp32",
        "onnxruntime fp32", "pfedmma fp32 plain", "pfedmma fp16 plain",
    ]  # fmt: skip
    assert rows[3]["measure"] == "peak"
    assert rows[-1]["ratios"].keys() >= {"onnxruntime fp32", "pfedmma fp32 plain, 2 clients"}
    assert rows[-2]["share_of_peak"] > 0 and rows[-1]["peer"] == "onnxruntime fp32"


def test_operators_are_part_of_a_name() -> None:
    """Else two forms of one precision would be one row."""
    subject = Subject({"name": "pfedmma fp16", "clients": 2}, lambda batch: list)
    assert inference.named(subject, ("ort", "fp16")).label == "pfedmma fp16 fused, 2 clients"


def test_clients_in_a_file(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = {"first_answer": 1.0, "load": 0.5, "memory": 1000, "peak_memory": 2000}
    monkeypatch.setattr(package_inference, "start_cold", lambda *_: memory)
    rows = measured(steps.STEPS["clients"], plan, tmp_path)
    assert [(row["measure"], row.get("clients")) for row in rows] == [
        ("clients", None),
        ("clients", 2),
    ]


def test_tensorrt_says_why_not(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "tensorrt_problem", lambda: "there is no such card")
    (row,) = measured(steps.STEPS["tensorrt"], plan, tmp_path)
    assert row["reason"] == "there is no such card"


# Deprecated since torchvision 0.29 in favour of torchcodec, which is no dependency.
@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
def test_photographs_both_ways(plan: Plan, tmp_path: Path) -> None:
    rows = measured(steps.STEPS["photos"], plan, tmp_path)
    assert [row["name"] for row in rows] == [
        "Pillow, threads: files to pixels", "torchvision, cpu: files to pixels",
        "Pillow, threads: files to labels", "torchvision, cpu: files to features",
    ]  # fmt: skip
    assert rows[0]["peer"] == "Pillow, threads: files to labels"
    # Two decoders, and two roundings of the same filter.
    assert rows[1]["difference"] == rows[3]["difference"] < 1


def test_a_photograph_resized_on_the_device_by_hand() -> None:
    """Four pixels wide and two high, to two: nothing to scale, the middle two columns."""
    image = torch.tensor([[0, 100, 200, 0], [0, 100, 200, 0]], dtype=torch.uint8)
    found = photos.resized(image.expand(3, 2, 4), 2)
    assert found.shape == (2, 2, 3)
    assert found[..., 0].tolist() == [[100, 200], [100, 200]]


def test_pixels_on_the_device_give_what_predicting_gives(plan: Plan, tmp_path: Path) -> None:
    bundle = inference.make_bundle(inference.open_bench(plan, register(), tmp_path), plan.forms[0])
    tower = photos.DeviceTower(bundle, "cpu", 1)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    feed = model_inputs(tower.session, pixels, np.array([1, 2]), np.ones(2, np.float32))
    wanted = tower.session.run(None, feed)[0]
    assert np.array_equal(tower(torch.from_numpy(pixels)), np.asarray(wanted))


# Training.


def test_rounds_are_reported_one_by_one(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {NAIVE.name: 6.0, OURS.name: 4.0}

    def timed(task: TrainingTask, ways: Sequence[Way], threads: int) -> Iterator[TrainingSeconds]:
        assert (task.clients, task.classes, task.shots) == (2, 2, 2)
        for way in ways:
            yield TrainingSeconds(
                way.name, seconds[way.name], 0.0, 0.0, 1, {"w": np.ones(1, np.float32)}
            )

    monkeypatch.setattr(training, "time_ways", timed)
    rows = measured(training.rounds, replace(plan, ways=(NAIVE, OURS)), tmp_path)
    assert [(row["name"], row["ratio"]) for row in rows] == [(NAIVE.name, None), (OURS.name, 1.5)]


def test_the_papers_setting_says_how_far_it_is(plan: Plan, tmp_path: Path) -> None:
    *rounds, end = measured(training.paper, plan, tmp_path)
    assert [(row["done"], row["of"]) for row in [*rounds, end]] == [(1, 2), (2, 2), (2, 2)]
    assert 0 < rounds[0]["wall"] <= rounds[1]["wall"] <= end["wall"]


def test_a_profile_of_a_round(plan: Plan, tmp_path: Path) -> None:
    rows = measured(training.profiles, plan, tmp_path)
    kept = [row for row in rows if row["transform"] == "none"]
    assert len(kept) + sum(row["transform"] == "random" for row in rows) == len(rows)
    first, *kernels = kept
    assert first["name"] == "round" and first["seconds"] > 0 and first["idle"] is None
    assert first["calls"]["aten::_local_scalar_dense"] > 0
    assert 0 < len(kernels) <= training.KERNELS
    assert [row["seconds"] for row in kernels] == sorted(
        (row["seconds"] for row in kernels), reverse=True
    )


def test_a_card_is_busy_while_any_kernel_runs() -> None:
    """0 to 3 and 5 to 6 microseconds: four; a kernel within another adds nothing."""
    assert training.busy_seconds([(5, 6), (0, 2), (1, 3), (1, 2)]) == pytest.approx(4e-6)
    assert training.busy_seconds([]) == 0


@dataclass
class Event:
    """A profiler's, of so many microseconds."""

    name: str
    start: float
    end: float

    @property
    def time_range(self) -> SimpleNamespace:
        return SimpleNamespace(start=self.start, end=self.end)


def test_kernels_by_name() -> None:
    events: Any = [Event("a", 0, 1), Event("b", 1, 5), Event("a", 5, 6)]
    assert training.longest(events, is_gpu=True) == [
        {"name": "b", "seconds": pytest.approx(4e-6), "calls": 1},
        {"name": "a", "seconds": pytest.approx(2e-6), "calls": 2},
    ]


# The summary.


def rate(backbone: str, name: str, batch: int, **more: Any) -> Row:
    row = {"measure": "rate", "backbone": backbone, "name": name, "precision": "fp16"}
    return {**row, "batch_size": batch, "images_per_second": 100.0, "ratio": None, **more}


def found(rows: Sequence[Row]) -> dict[str, str | None]:
    return {row["target"]: row["found"] for row in summary.targets(rows)}


def test_targets_by_hand() -> None:
    plain = {"onnxruntime fp16": {"median": 0.97, "low": 0.9, "high": 1.0}}
    train = {"measure": "train", "classes": 10}
    rows = [
        rate("ViT-B-16", "pfedmma fp16 fused", 256, share_of_peak=0.625, ratios=plain),
        rate("ViT-B-32", "pfedmma fp16 fused", 1, latency={"p50": 0.0025}),
        {**train, "name": NAIVE.name, "seconds_per_round": 12.0},
        {**train, "name": NAIVE_BF16.name, "seconds_per_round": 8.0},
        {**train, "name": OURS.name, "seconds_per_round": 2.0},
        {**train, "name": "ours, bf16", "seconds_per_round": 1.0},
        {"measure": "paper", "done": 49, "of": 50, "wall": 150.0},
    ]
    cells = found(rows)
    assert cells["ViT-B/16 fp16, batch 256, 100 clients: of plain CLIP's rate"] == "0.97"
    assert cells["ViT-B/16 fp16, batch 256: % of the card's peak"] == "62.5"
    assert cells["ViT-B/16 fp16, batch 1024: % of the card's peak"] is None
    assert cells["ViT-B/32 fp16, batch 1: ms"] == "2.50"
    assert cells["Training, 10 classes, fp32: x naive baseline"] == "6.00"
    assert cells["Training, 10 classes, bf16: x naive baseline"] == "8.00"
    assert cells["Training, 100 classes, bf16: x naive baseline"] is None
    assert cells["50 rounds of the paper's setting: s"] is None
    whole = found([*rows, {"measure": "paper", "done": 50, "of": 50, "wall": 153.0}])
    assert whole["50 rounds of the paper's setting: s"] == "153"


def test_what_was_measured_before_a_kill_is_in_the_summary(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    steps.append(results, {"measure": "peak", "name": "torch's copy", "bytes_per_second": 4e12})
    steps.append(results, {"measure": "step", "name": "rates", "ended": "cut off", "wall": 130})
    steps.append(results, {"measure": "tensorrt", "name": "TensorRT", "reason": "none here"})
    with results.open("a") as lines:
        lines.write('{"measure": "peak", "na')
    text = summary.write(results, tmp_path, is_small=True)
    assert "Made by `bash benchmarks/gpu.sh --small OUT`." in text
    assert "| rates | cut off | 130 |" in text
    assert "| torch's copy | 4,000 |" in text
    assert "Not measured: none here" in text
    (data,) = tmp_path.glob("gpu-*.json")
    assert [row["measure"] for row in json.loads(data.read_text())["rows"]] == [
        "peak", "step", "tensorrt",
    ]  # fmt: skip


def test_peaks_and_profiles_have_a_line_each() -> None:
    peaks = [{"measure": "peak", "name": "matmul fp16", "flop_per_second": f} for f in (1e12, 2e12)]
    calls = {"cudaMemcpyAsync": 7, "cudaStreamSynchronize": 0}
    about = {"measure": "profile", "transform": "none"}
    profile = [
        {**about, "name": "round", "seconds": 2.0, "busy": 1.5, "idle": 0.25, "calls": calls},
        {**about, "name": "gemm", "seconds": 1.0, "calls": 3},
    ]
    tables = {table.title: table.cells for table in summary.tables([*peaks, *profile])}
    assert tables["The card's peak"] == [["matmul fp16", "2.00"]]
    assert tables["Where a round's time goes"] == [
        ["none", "round", "2.00", "-", "1.50", "25.0"],
        ["none", "cudaMemcpyAsync", "-", "7", "-", "-"],
        ["none", "gemm", "1.00", "3", "-", "-"],
    ]


# The script.


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPT), *arguments]
    environment = {**os.environ, **variables}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )


def test_the_script_says_how_it_is_called() -> None:
    done = run()
    assert done.returncode == 2
    assert done.stderr == "usage: bash benchmarks/gpu.sh [--small] OUT\n"


def test_the_script_runs_every_step_that_there_is() -> None:
    """Whose order is the script's: what matters most comes first."""
    text = SCRIPT.read_text()
    for name in steps.STEPS:
        assert f"measure {name} " in text, name


def test_a_step_that_fails_or_hangs_costs_only_itself(tmp_path: Path) -> None:
    """With an interpreter that fails in one step and hangs in another."""
    python, out = tmp_path / "python", tmp_path / "out"
    python.write_text(
        """#!/bin/sh
        case "$*" in
            *"gpu rates "*) echo no such kernel; exit 3 ;;
            *"gpu paper "*) sleep 60 ;;
            *"gpu summary "*) echo the tables ;;
        esac
        """
    )
    python.chmod(0o755)
    done = run(str(out), PYTHON=str(python), GPU_SECONDS="12")
    rows = summary.read(out / "results.jsonl")
    ended = {row["name"]: row["ended"] for row in rows}
    assert ended.keys() == {*steps.STEPS, "doctor", "tests"}
    assert (ended["rates"], ended["photos"], ended["paper"]) == ("failed (3)", "done", "cut off")
    assert ended["training-compiled"] == "not run: no time left"
    assert done.returncode == 1 and done.stdout.endswith("the tables\n")
    assert "no such kernel" in (out / "log.txt").read_text()


def test_without_a_gpu_the_full_form_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "training_gpu", lambda: None)
    monkeypatch.setattr("sys.argv", ["gpu", "peak", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^torch sees no CUDA device here: --small runs on any"):
        steps.main()
    assert FULL.device == "cuda" and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_script_in_small(tmp_path: Path) -> None:
    """Every step really runs, in a process of its own."""
    done = run("--small", str(tmp_path / "out"))
    log = (tmp_path / "out/log.txt").read_text()
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{log}"
    rows = summary.read(tmp_path / "out/results.jsonl")
    ended = {row["name"]: row["ended"] for row in rows if row["measure"] == "step"}
    assert set(ended.values()) == {"done"}
    left_out = {"export-second", "rates-second", "training-compiled"}
    assert ended.keys() == {*steps.STEPS, "doctor", "tests"} - left_out
    assert (tmp_path / "out/doctor.json").exists()
    assert len(list((tmp_path / "out").glob("gpu-*"))) == 2
