"""The published training tables: those of `pfedmma bench --train`, what they should be, and more.

    python benchmarks/training_table.py --backbone pfedmma-tiny,ViT-B-32,ViT-B-16

Rounds beside the naive baseline with the bound that counted operations set; seconds until the
quickstart's clients reach an accuracy; thousands of clients.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from pfedmma_deploy.backbone.clip import Backbone, class_texts
from pfedmma_deploy.backbone.flops import image_tokens, tower_flop
from pfedmma_deploy.backbone.linear import mkl_is_slow
from pfedmma_deploy.backbone.loading import backbone_shapes
from pfedmma_deploy.benchmark.report import Columns, Report, Row, make_section
from pfedmma_deploy.benchmark.training import (
    HOW,
    NAIVE,
    OURS,
    ROUND,
    ROUND_NOTE,
    TrainingTask,
    Way,
    default_ways,
    round_tasks,
    time_ways,
    training_gpu,
    training_rows,
)
from pfedmma_deploy.config import PartitionConfig, TrainConfig, read_options
from pfedmma_deploy.federated.train import train
from pfedmma_deploy.methods.registry import make_method, resolve_run
from pfedmma_deploy.system import available_cores, describe_environment, peak_memory, process_pool
from pfedmma_deploy.types import TOWERS

SAME_MATMUL = Way("ours, fp32, torch's matmul", {}, linear=F.linear)
"""Ours by torch's default library, as the naive baseline: what leaving work out wins by itself."""
TARGET = 80.0
"""Percent of validation accuracy that the small real run is timed to."""


def count_round(task: TrainingTask, backbone: Backbone) -> tuple[int, int]:
    """Operations of a round, training and evaluation of its participants.

    Of the naive baseline, and with what can be left out left out.
    """
    adapter = make_method("pfedmma").build(backbone, torch.Generator())
    names = [f"class {i}" for i in range(2 * task.classes)]
    prompts = class_texts(backbone, names, "a photo of a {}.").prompts
    names_read = task.participants * 2 * task.classes  # each with one test image

    def count(is_naive: bool) -> int:
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
        return (
            task.participants * task.images * image.total
            + task.steps * task.classes * text.total
            + names_read * (image.forward + text.forward)
        )

    return count(is_naive=True), count(is_naive=False)


BOUNDS: Columns = {**ROUND, "Bound": ("bound", 1), "% of bound": ("share_of_bound", 100)}
BOUNDS_NOTE = (
    f"{ROUND_NOTE} Bound: naive baseline over ours in counted operations of the frozen towers, the "
    "most that leaving out can win with the same matmul."
)


def measure_rounds(backbones: Sequence[str], threads: int) -> list[Row]:
    """Rounds in every way, with the bound for those that use the same matmul."""
    slow = [SAME_MATMUL] if mkl_is_slow() else []
    bounded = SAME_MATMUL if slow else OURS
    naive, *ours = default_ways()
    rows = []
    for backbone in backbones:
        for task in round_tasks(backbone):
            plain, least = count_round(task, backbone_shapes(backbone))
            bound = plain / least
            found = list(time_ways(task, [naive, *slow, *ours], threads))
            for row in training_rows(task, found):
                share = row["ratio"] / bound if row["name"] == bounded.name else None
                rows.append({**row, "bound": bound, "share_of_bound": share})
                print(rows[-1], flush=True)
    return rows


ACCURACY: Columns = {
    "Way": ("name", 1),
    "Target %": ("target", 1),
    "Round": ("round", 1),
    "s": ("seconds", 1),
    "x naive": ("ratio", 1),
}
ACCURACY_NOTE = (
    "The quickstart's federation (pfedmma-tiny, cifar10-sample): seconds of training, validation "
    "and storing until the mean accuracy of the clients on their own validation images reaches the "
    "target."
)


def time_to_accuracy() -> list[Row]:
    """Seconds of training until the quickstart's clients are right on their validation images."""
    config = resolve_run(read_options({}, preset="quickstart"))
    rows: list[Row] = []
    for way in (NAIVE, OURS):
        row: Row = {"measure": "accuracy", "name": way.name, "target": TARGET}
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
    return rows


SCALE: Columns = {
    "Clients": ("clients", 1),
    "A round": ("participants", 1),
    "Around rounds s": ("around", 1),
    "Round s": ("round", 1),
    "Of it training s": ("train", 1),
    "Peak GB": ("memory", 1e-9),
    "On disk MB": ("disk", 1e-6),
}
SCALE_NOTE = (
    "`pfedmma train` on pfedmma-tiny with clients of two training images each; a hundredth of "
    "them in a round. Around the rounds: reading and dividing the data before, writing every "
    "client's folder after."
)


def time_clients(clients: int, threads: int) -> Row:
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
    environment = describe_environment(threads, gpu=training_gpu())
    rounds, reached, large = measure_rounds(backbones, threads), time_to_accuracy(), []
    for count in given.clients.split(","):
        # Peak memory belongs to a whole process.
        with process_pool(1) as pool:
            large.append(pool.submit(time_clients, int(count), threads).result())
    tables = [
        make_section("One round", BOUNDS_NOTE, BOUNDS, rounds),
        make_section("Time to an accuracy", ACCURACY_NOTE, ACCURACY, reached),
        make_section("Many clients", SCALE_NOTE, SCALE, large),
    ]
    command = f"python benchmarks/training_table.py {' '.join(sys.argv[1:])}"
    rows = [*rounds, *reached, *large]
    report = Report("training", command, HOW, environment, rows, tables)
    print("Written:", *report.write(given.out))


if __name__ == "__main__":
    main()
