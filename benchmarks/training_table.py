"""The published training tables: those of `pfedmma bench --train`, what they should be, and more.

    python benchmarks/training_table.py --backbone pfedmma-tiny,ViT-B-32,ViT-B-16

Rounds beside the naive baseline with the bound that counted operations set; what a round costs as a
federation grows; seconds until the quickstart's clients reach an accuracy; thousands of clients.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from pfedmma_deploy.backbone.clip import Backbone, class_texts
from pfedmma_deploy.backbone.flops import image_tokens, tower_flop
from pfedmma_deploy.backbone.linear import mkl_is_slow
from pfedmma_deploy.backbone.loading import backbone_shapes
from pfedmma_deploy.benchmark.report import Section, number, write_report
from pfedmma_deploy.benchmark.training import (
    HOW,
    NAIVE,
    OURS,
    TrainingTask,
    Way,
    default_ways,
    round_section,
    round_tasks,
    time_ways,
    training_rows,
)
from pfedmma_deploy.config import PartitionConfig, TrainConfig, read_options
from pfedmma_deploy.federated.train import train
from pfedmma_deploy.methods.registry import make_method, resolve_run
from pfedmma_deploy.system import available_cores, describe_environment, peak_memory, process_pool
from pfedmma_deploy.types import TOWERS

SAME_MATMUL = Way("ours, fp32, torch's matmul", {}, linear=F.linear)
"""Ours by torch's default library, as the naive baseline: what leaving work out wins by itself."""
GROWING = ((10, 10, 16), (10, 100, 16), (10, 10, 4), (2, 10, 16), (100, 100, 16))
"""Clients, base classes and shots for which a round is counted."""
TARGET = 80.0
"""Percent of validation accuracy that the small real run is timed to."""


@dataclass(frozen=True)
class RoundFlop:
    """Operations of one round: of the naive baseline, and with what can be left out left out."""

    naive: int
    ours: int

    @property
    def bound(self) -> float:
        """The most that leaving out can win."""
        return self.naive / self.ours


def count_round(task: TrainingTask, backbone: Backbone) -> RoundFlop:
    """Count a round of a task: training and evaluation of its participants."""
    adapter = make_method("pfedmma").build(backbone, torch.Generator())
    names = [f"class {i}" for i in range(2 * task.classes)]
    prompts = class_texts(backbone, names, "a photo of a {}.").prompts
    names_read = task.participants * 2 * task.classes  # each with one test image
    found = []
    for is_naive in (True, False):
        own = replace(backbone, token_shortcuts=not is_naive)
        first = {tower: adapter.first_block(own, tower) for tower in TOWERS}
        tokens = {"image": image_tokens(own), "text": own.prompt_length(prompts)}
        image, text = (
            tower_flop(
                own,
                tower,
                tokens[tower],
                start=0 if is_naive else first[tower],
                adapted=first[tower],
            )
            for tower in TOWERS
        )
        found.append(
            task.participants * task.images * image.total
            + task.steps * task.classes * text.total
            + names_read * (image.forward + text.forward)
        )
    return RoundFlop(*found)


def measure_rounds(backbones: Sequence[str], threads: int) -> tuple[list[dict[str, Any]], Section]:
    """Rounds in every way, with the bound for those that use the same matmul."""
    slow = [SAME_MATMUL] if mkl_is_slow() else []
    bounded = SAME_MATMUL if slow else OURS
    naive, *ours = default_ways()
    rows = []
    for backbone in backbones:
        for task in round_tasks(backbone):
            bound = count_round(task, backbone_shapes(backbone)).bound
            for row in training_rows(task, time_ways(task, [naive, *slow, *ours], threads)):
                share = row["ratio"] / bound if row["name"] == bounded.name else None
                rows.append({**row, "bound": bound, "share_of_bound": share})
                print(row, flush=True)
    section = round_section(rows)
    cells = []
    for row, line in zip(rows, section.cells, strict=True):
        share = number(row["share_of_bound"], "{:.0%}")
        cells.append([*line[:-1], number(row["bound"], "{:.2f}"), share, line[-1]])
    columns = [*section.columns[:-1], "Bound", "Of bound", section.columns[-1]]
    note = (
        f"{section.note} Bound: naive baseline over ours in counted operations of the frozen "
        "towers, the most that leaving out can win with the same matmul."
    )
    return rows, replace(section, note=note, columns=columns, cells=cells)


def cost_section(backbones: Sequence[str]) -> Section:
    """What a round costs as the federation grows, counted."""
    cells = []
    for backbone in backbones:
        for clients, classes, shots in GROWING:
            task = TrainingTask(backbone, clients=clients, classes=classes, shots=shots)
            flop = count_round(task, backbone_shapes(backbone))
            tera = [number(count, "{:.2f}", 1e-12) for count in (flop.naive, flop.ours)]
            cells.append(
                [backbone, *map(str, (clients, classes, shots)), *tera, f"{flop.bound:.2f}"]
            )
    columns = ["Backbone", "Clients", "Classes", "Shots", "Naive TFLOP", "Ours TFLOP", "Bound"]
    note = "Counted operations of one round, evaluation included (not measured)."
    return Section("Cost of a round", note, columns, cells)


def time_to_accuracy() -> tuple[list[dict[str, Any]], Section]:
    """Seconds of training until the quickstart's clients are right on their validation images."""
    config = resolve_run(read_options({}, preset="quickstart"))
    rows: list[dict[str, Any]] = []
    for way in (NAIVE, OURS):
        row: dict[str, Any] = {"measure": "accuracy", "name": way.name, "target": TARGET}
        row |= {"round": None, "seconds": None, "ratio": None}
        seconds = 0.0
        with tempfile.TemporaryDirectory() as folder:
            for record in train(replace(config, **way.options), Path(folder, "run")).run.rounds:
                seconds += record["seconds"]
                if row["round"] is None and record["val_accuracy"] >= TARGET:
                    row |= {"round": record["round"], "seconds": seconds}
        if rows and row["seconds"]:
            row["ratio"] = rows[0]["seconds"] / row["seconds"]
        rows.append(row)
    cells = []
    for row in rows:
        reached = str(row["round"] or "not reached")
        times = [number(row["seconds"], "{:.1f}"), number(row["ratio"], "{:.2f}")]
        cells.append([row["name"], f"{TARGET:.0f} %", reached, *times])
    note = (
        "The quickstart's federation (pfedmma-tiny, cifar10-sample): seconds of training, "
        "validation and storing until the mean accuracy of the clients on their own validation "
        "images reaches the target."
    )
    columns = ["Way", "Target", "Round", "s", "x naive"]
    return rows, Section("Time to an accuracy", note, columns, cells)


def many_clients(counts: Sequence[int], threads: int) -> tuple[list[dict[str, Any]], Section]:
    """Federations of thousands, each in a process of its own: memory, time and disk."""
    rows, cells = [], []
    for count in counts:
        with process_pool(1) as pool:
            row = pool.submit(time_clients, count, threads).result()
        rows.append(row)
        times = [f"{row[name]:.1f}" for name in ("around", "round", "train")]
        sizes = [number(row["memory"], "{:.2f}", 1e-9), number(row["disk"], "{:.0f}", 1e-6)]
        cells.append([f"{count:,}", str(row["participants"]), *times, *sizes])
    columns = [
        "Clients", "A round", "Around rounds s", "Round s", "Of it training s", "Peak GB",
        "On disk MB",
    ]  # fmt: skip
    note = (
        "`pfedmma train` on pfedmma-tiny with clients of two training images each; a hundredth of "
        "them in a round. Around the rounds: reading and dividing the data before, writing every "
        "client's folder after."
    )
    return rows, Section("Many clients", note, columns, cells)


def time_clients(clients: int, threads: int) -> dict[str, Any]:
    """Make images of noise, two to train and one to test a client, train, read the ledger."""
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder, "noise.csv"), Path(folder, "run")
        with data.open("w", encoding="utf-8", newline="") as handle:
            table = csv.writer(handle)
            table.writerow(["path", "label", "client", "split"])
            for i in range(3 * clients):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(data.with_name(f"{i}.png"), compress_level=0)
                client, split = i // 3, "test" if i % 3 == 2 else "train"
                table.writerow([f"{i}.png", f"class {client % 10}", client, split])
        config = TrainConfig(
            data=str(data),
            backbone="pfedmma-tiny",
            partition=PartitionConfig(
                scheme="folders", classes="all", num_shots=0, clients=clients
            ),
            clients_per_round=0.01,
            rounds=3,
            local_epochs=1,
            batch_size=16,
            transform="none",
            parameters={"bottleneck_dim": 16, "scale": 0.1},
        )
        began = time.perf_counter()
        rounds = train(config, out).run.rounds
        seconds = time.perf_counter() - began
        # A file with several names counts once.
        files = {path.stat().st_ino: path.stat().st_size for path in out.rglob("*")}
        return {
            "measure": "scale",
            "images_per_second": None,
            "clients": clients,
            "participants": len(rounds[0]["clients"]),
            "around": seconds - sum(record["seconds"] for record in rounds),
            "round": median(record["seconds"] for record in rounds),
            "train": median(record["seconds_by_phase"]["train"] for record in rounds),
            "memory": peak_memory(),
            "disk": sum(files.values()),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--backbone", default="pfedmma-tiny,ViT-B-32,ViT-B-16")
    parser.add_argument("--clients", default="1000,10000", help="of the large federations")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    given = parser.parse_args()
    backbones, threads = given.backbone.split(","), available_cores()
    environment = describe_environment(threads)
    rows, rounds = measure_rounds(backbones, threads)
    tables = [rounds, cost_section(backbones)]
    large = many_clients([int(count) for count in given.clients.split(",")], threads)
    for more, section in (time_to_accuracy(), large):
        rows += more
        tables.append(section)
    command = f"python benchmarks/training_table.py {' '.join(sys.argv[1:])}"
    for path in write_report(given.out, "training", command, environment, rows, tables, HOW):
        print(f"Written: {path}")


if __name__ == "__main__":
    main()
