"""Thousands of clients on one machine: what a run costs in memory, time and disk."""

from __future__ import annotations

import csv
import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pfedmma_deploy.config import TrainConfig
from pfedmma_deploy.federated.train import train
from pfedmma_deploy.progress import Item, Progress, Silent
from pfedmma_deploy.system import peak_memory, process_pool

FRACTION = 0.01
ROUNDS = 3
SIZE = 32
"""Pixels: what pfedmma-tiny looks at."""


@dataclass(frozen=True)
class ScaleResult:
    """One run of many clients; seconds."""

    clients: int
    participants: int
    """Clients that train in a round."""
    start: float
    round: float
    """Median."""
    train: float
    """Median, of the round."""
    finish: float
    memory: int
    """Peak resident bytes of the process."""
    disk: int
    """Bytes of the run folder, a file with several names counted once."""


def bench_scale(
    clients: Sequence[int], threads: int, progress: Progress | None = None
) -> list[ScaleResult]:
    """Train federations of so many clients, each in a process of its own."""
    found = []
    for count in (progress or Silent()).track(clients, "federations", len(clients)):
        with process_pool(1) as pool:
            found.append(pool.submit(time_scale, count, threads).result())
    return found


def time_scale(clients: int, threads: int) -> ScaleResult:
    """Make the images, train for a few rounds, read the ledger."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "noise.csv", Path(folder) / "run"
        write_clients(data, clients)
        config = TrainConfig(
            data=str(data),
            backbone="pfedmma-tiny",
            partition="folders",
            classes="all",
            shots=0,
            clients=clients,
            clients_per_round=FRACTION,
            rounds=ROUNDS,
            local_epochs=1,
            batch_size=16,
            transform="none",
            parameters={"bottleneck_dim": 16, "scale": 0.1},
        )
        began = time.perf_counter()
        watch = _FirstRound()
        train(config, out, progress=watch)
        seconds, started = time.perf_counter() - began, watch.at - began
        rounds = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
        spent = sum(record["seconds"] for record in rounds)
        files = {path.stat().st_ino: path.stat().st_size for path in out.rglob("*")}
        return ScaleResult(
            clients=clients,
            participants=len(rounds[0]["clients"]),
            start=started,
            round=float(np.median([record["seconds"] for record in rounds])),
            train=float(np.median([r["seconds_by_phase"]["train"] for r in rounds])),
            finish=max(0.0, seconds - started - spent),
            memory=peak_memory(),
            disk=sum(files.values()),
        )


class _FirstRound(Silent):
    """Notices when the rounds begin."""

    at = 0.0

    def track(self, items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
        if label == "rounds":
            self.at = time.perf_counter()
        yield from items


def write_clients(manifest: Path, clients: int) -> None:
    """A CSV manifest of clients with two training images and one for testing, all of one class."""
    names = ("cat", "dog", "ship", "tree", "car", "bird", "frog", "horse", "cup", "key")
    rng = np.random.default_rng(0)
    folder = manifest.parent / "images"
    folder.mkdir()
    with manifest.open("w", encoding="utf-8", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(["path", "label", "client", "split"])
        for client in range(clients):
            for i, split in enumerate(("train", "train", "test")):
                pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
                path = folder / f"{client}-{i}.png"
                Image.fromarray(pixels).save(path, compress_level=0)
                table.writerow([f"images/{path.name}", names[client % len(names)], client, split])
