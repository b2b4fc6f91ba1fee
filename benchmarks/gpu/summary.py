"""What was measured, as tables: `gpu-<machine>.md`, with every row in a `.json` beside it.

Also of a call in which steps failed or were cut off: their rows up to there count, and the first
table says how each step ended.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.inference_table import SHARE
from pfedmma_deploy.benchmark.inference import HOW, sections
from pfedmma_deploy.benchmark.report import Columns, Report, Row, Section, make_section, number
from pfedmma_deploy.benchmark.training import NAIVE, round_section
from pfedmma_deploy.system import Environment, available_cores, describe_environment

STEPS: Columns = {"Step": ("name", 1), "Ended": ("ended", 1), "s": ("wall", 1)}
PEAKS: Columns = {
    "": ("name", 1),
    "TFLOP/s": ("flop_per_second", 1e-12),
    "GB/s": ("bytes_per_second", 1e-9),
}
PAPER: Columns = {
    "Way": ("name", 1),
    "Rounds done": ("done", 1),
    "Of": ("of", 1),
    "Wall s": ("wall", 1),
}
PHOTOS: Columns = {
    "Way": ("name", 1),
    "Images/s": ("images_per_second", 1),
    "x Pillow to labels": ("ratio", 1),
    "Pixel difference": ("difference", 1),
}
TENSORRT: Columns = {
    "": ("name", 1),
    "Batch": ("batch_size", 1),
    "Images/s": ("images_per_second", 1),
    "x CUDA": ("ratio", 1),
    "Difference": ("difference", 1),
}
PROFILE: Columns = {
    "Training images": ("transform", 1),
    "Kernel": ("name", 1),
    "s": ("seconds", 1),
    "Calls": ("calls", 1),
    "Busy s": ("busy", 1),
    "Idle %": ("idle", 100),
}
TARGETS: Columns = {"Target": ("target", 1), "Wanted": ("wanted", 1), "Found": ("found", 1)}
PAPER_NOTE: Final = (
    "`pfedmma train --autocast bf16` with the paper's settings: random crops, two epochs a round, "
    "ten classes and 16 images of each for every client."
)
PEAK_NOTE: Final = (
    "Large square products by torch, without TF32 in fp32, and a copy within the device's memory, "
    "bytes read and written."
)
PHOTOS_NOTE: Final = (
    "Photographs of 500 x 375 pixels. Pixel difference: mean distance from Pillow's, of 255."
)
PROFILE_NOTE: Final = (
    "One round of all clients in bf16, after one that fills the caches; `none` shows the images as "
    "they are, from kept activations, `random` crops them anew. `round`: seconds without the "
    "profiler, in which the kernels are busy or the card idle. On a CPU operators, not kernels."
)


def write(results: Path, out: Path, *, is_small: bool) -> str:
    """Write both files into `out`; returns the text of the first.

    Args:
        results: `results.jsonl`; a line that a kill cut off is passed over.
        out: folder of both files.
        is_small: whether it was the small form, for the command that repeats it.
    """
    rows = read(results)
    described = [row for row in rows if row["measure"] == "environment"]
    environment = describe_environment(available_cores())
    if described:
        known = {key: value for key, value in described[0].items() if key != "measure"}
        environment = Environment(**{**known, "instructions": tuple(known["instructions"])})
    command = f"bash benchmarks/gpu.sh {'--small ' if is_small else ''}OUT"
    measured = [row for row in rows if row["measure"] != "environment"]
    report = Report("gpu", command, HOW, environment, measured, tables(measured))
    return report.write(out)[0].read_text("utf-8")


def read(results: Path) -> list[Row]:
    """The rows of `results.jsonl`."""
    rows = []
    for line in results.read_text("utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # the end of a step that was cut off
    return rows


def tables(rows: Sequence[Row]) -> list[Section]:
    """All tables in which something stands."""

    def of(measure: str) -> list[Row]:
        return [row for row in rows if row["measure"] == measure]

    rates = [_with_names_of_peers(row) for row in rows if row["measure"] in ("rate", "clients")]
    found = [
        make_section("Steps", "", STEPS, of("step")),
        make_section("Targets", "", TARGETS, targets(rows)),
        make_section("The card's peak", PEAK_NOTE, PEAKS, _last_of_each_name(of("peak"))),
        *sections(rates, SHARE),
        round_section(of("train")),
        make_section("The paper's setting", PAPER_NOTE, PAPER, of("paper")[-1:]),
        make_section("From JPEG files", PHOTOS_NOTE, PHOTOS, of("photos")),
        make_section("Where a round's time goes", PROFILE_NOTE, PROFILE, _profile(of("profile"))),
        make_section("TensorRT", "", TENSORRT, *_tensorrt(of("tensorrt"))),
    ]
    return [section for section in found if section.cells or section.reasons]


def targets(rows: Sequence[Row]) -> list[Row]:
    """What issue and card ask for, and what was found; `-` where that was not measured."""
    rates = {(r["backbone"], r["name"], r["batch_size"]): r for r in rows if r["measure"] == "rate"}
    wanted = []

    def add(target: str, limit: str, found: float | None, scale: float = 1) -> None:
        cell = None if found is None else number(found, scale)
        wanted.append({"target": target, "wanted": limit, "found": cell})

    for batch in (32, 256, 1024):
        row = rates.get(("ViT-B-16", "pfedmma fp16 fused", batch), {})
        plain = row.get("ratios", {}).get("onnxruntime fp16", {}).get("median")
        add(f"ViT-B/16 fp16, batch {batch}, 100 clients: of plain CLIP's rate", ">= 0.95", plain)
        share = row.get("share_of_peak")
        limit = ">= 60" if batch == 256 else "rising"
        add(f"ViT-B/16 fp16, batch {batch}: % of the card's peak", limit, share, 100)
    one = rates.get(("ViT-B-32", "pfedmma fp16 fused", 1), {})
    add("ViT-B/32 fp16, batch 1: ms", "< 3", one.get("latency", {}).get("p50"), 1000)
    for classes in (10, 100):
        for precision in ("fp32", "bf16"):
            ratio = _training_ratio(rows, classes, precision)
            add(f"Training, {classes} classes, {precision}: x naive baseline", ">= 5", ratio)
    done = [r for r in rows if r["measure"] == "paper" and r["done"] == r["of"] == 50]
    add("50 rounds of the paper's setting: s", "< 180", done[-1]["wall"] if done else None)
    return wanted


def _training_ratio(rows: Sequence[Row], classes: int, precision: str) -> float | None:
    """Seconds of the naive baseline's round over ours, in one precision."""
    own = [r for r in rows if r["measure"] == "train" and r["classes"] == classes]
    seconds = {row["name"]: row["seconds_per_round"] for row in own}
    naive = NAIVE.name.replace("fp32", precision)
    if naive not in seconds or f"ours, {precision}" not in seconds:
        return None
    found: float = seconds[naive] / seconds[f"ours, {precision}"]
    return found


def _with_names_of_peers(row: Row) -> Row:
    """The row with the ratios to ONNX Runtime and torch eager alone: others would be 15 columns."""
    shown = {}
    for label, ratio in row.get("ratios", {}).items():
        if label.startswith(("onnxruntime", "torch")):
            shown[label] = ratio
    return {**row, "ratios": shown} if shown else row


def _last_of_each_name(rows: Sequence[Row]) -> list[Row]:
    return list({row["name"]: row for row in rows}.values())


def _profile(rows: Sequence[Row]) -> list[Row]:
    """The lines of a profile, where the host's calls stand as lines of their own."""
    lines: list[Row] = []
    for row in rows:
        calls = row["calls"]
        if not isinstance(calls, dict):
            lines.append(row)
            continue
        lines.append({**row, "calls": None})
        for name, count in calls.items():
            if count:
                lines.append({"transform": row["transform"], "name": name, "calls": count})
    return lines


def _tensorrt(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    measured = [row for row in rows if "reason" not in row]
    return measured, [row["reason"] for row in rows if "reason" in row]
