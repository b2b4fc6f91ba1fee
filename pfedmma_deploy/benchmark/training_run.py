"""`pfedmma bench --train`: which rounds are timed, counted and shown."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pfedmma_deploy.backbone.loading import load_backbone
from pfedmma_deploy.backbone.products import mkl_is_slow
from pfedmma_deploy.benchmark.report import Section
from pfedmma_deploy.benchmark.round_flop import count_round
from pfedmma_deploy.benchmark.scale import bench_scale
from pfedmma_deploy.benchmark.training import (
    OURS,
    OURS_BF16,
    SAME_PRODUCTS,
    STRAIGHT,
    TrainingTask,
    bench_training,
)
from pfedmma_deploy.benchmark.training_tables import (
    Timed,
    accuracy_section,
    curve_section,
    round_section,
    scale_section,
)
from pfedmma_deploy.config import TrainConfig, read_options
from pfedmma_deploy.federated.train import train
from pfedmma_deploy.methods.resolve import resolve_run
from pfedmma_deploy.progress import Progress
from pfedmma_deploy.system import processor_features

CLASSES = (10, 100)
FULL = 30
"""Classes from which only one client of ten is timed: they are alike, and it takes long."""
CURVES = ((10, 10, 16), (10, 100, 16), (10, 10, 4), (2, 10, 16), (100, 100, 16))
"""Clients, base classes and shots for which a round is counted."""
TARGET = 80.0
"""Percent of validation accuracy that the small real run is timed to."""


def bench_training_tables(
    backbones: Sequence[str], clients: Sequence[int], threads: int, progress: Progress
) -> tuple[list[dict[str, Any]], list[Section]]:
    """Everything that `bench --train` measures: rows for programs, tables for people."""
    rows, tables = bench_rounds(backbones, 1, threads, progress)
    if "pfedmma-tiny" in backbones:
        for more, sections in (
            bench_accuracy(progress),
            bench_many_clients(clients, threads, progress),
        ):
            rows, tables = rows + more, tables + sections
    return rows, tables


def bench_rounds(
    backbones: Sequence[str], rounds: int, threads: int, progress: Progress
) -> tuple[list[dict[str, Any]], list[Section]]:
    """Time a round of each backbone with few and many classes, and count what it should cost."""
    subjects = [
        STRAIGHT,
        *([SAME_PRODUCTS] if mkl_is_slow() else []),
        OURS,
        *([OURS_BF16] if has_bf16() else []),
    ]
    timed, curves = [], []
    for name in backbones:
        shapes = load_backbone(name, None if name == "pfedmma-tiny" else "random")
        for classes in CLASSES:
            only = 1 if classes >= FULL and name != "pfedmma-tiny" else None
            task = TrainingTask(name, classes=classes, rounds=rounds, of_clients=only)
            found = bench_training(task, subjects, threads, progress)
            timed.append(Timed(task, count_round(task, shapes), found))
        tasks = [TrainingTask(name, clients=n, classes=c, shots=k) for n, c, k in CURVES]
        curves += [(task, count_round(task, shapes)) for task in tasks]
    rows = [row for one in timed for row in one.to_rows()]
    return rows, [round_section(timed), curve_section(curves)]


def has_bf16() -> bool:
    """Whether this processor multiplies bf16 numbers itself."""
    is_wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return is_wide and bool(processor_features() & {"avx512_bf16", "amx_bf16"})


def bench_many_clients(
    clients: Sequence[int], threads: int, progress: Progress
) -> tuple[list[dict[str, Any]], list[Section]]:
    """Time federations of thousands."""
    found = bench_scale(clients, threads, progress)
    rows = [{"measure": "scale", "images_per_second": None, **vars(one)} for one in found]
    return rows, [scale_section(found)]


def bench_accuracy(progress: Progress) -> tuple[list[dict[str, Any]], list[Section]]:
    """Seconds of training until the quickstart's clients are right on their validation images."""
    config = resolve_run(read_options({}, preset="quickstart"))
    ways = {
        STRAIGHT: replace(config, engine="sequential", cache=False),
        OURS: config,
    }
    rows = []
    for name in progress.track(list(ways), "ways to the accuracy", len(ways)):
        rows.append({"measure": "accuracy", "name": name, **_to_accuracy(ways[name])})
    first = rows[0]["seconds"]
    for row in rows:
        row["ratio"] = None if row is rows[0] or not row["seconds"] else first / row["seconds"]
    return rows, [accuracy_section(rows)]


def _to_accuracy(config: TrainConfig) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder) / "run")
        lines = (Path(folder) / "run" / "rounds.jsonl").read_text("utf-8").splitlines()
    seconds = 0.0
    for record in map(json.loads, lines):
        seconds += record["seconds"]
        if record["val_accuracy"] >= TARGET:
            return {"target": TARGET, "round": record["round"], "seconds": seconds}
    return {"target": TARGET, "round": None, "seconds": None}
