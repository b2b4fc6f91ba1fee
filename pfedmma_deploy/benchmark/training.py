"""`pfedmma bench --train`: how long a round takes, beside the naive baseline.

The naive baseline reads the paper as it is written: client by client, every image through all
blocks at every step, all prompts at their full 77 tokens, every client's evaluation from pixels,
matmuls by torch's default library. Ours keeps the activations of frozen blocks, cuts prompts,
computes the last block for the token that is read, trains clients in batches, and multiplies
through the faster library; and the same in bf16. Both start from the same weights and end, in fp32,
at the same. Images are noise and weights random: neither changes how long a step takes.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from pfedmma_deploy.backbone.linear import Linear
from pfedmma_deploy.backbone.loading import RANDOM, backbone_shapes
from pfedmma_deploy.benchmark.report import Columns, Row, Section, make_section
from pfedmma_deploy.caches import VARIABLE
from pfedmma_deploy.config import PartitionConfig, TrainConfig
from pfedmma_deploy.federated.evaluate import open_scorer
from pfedmma_deploy.federated.session import open_run_session
from pfedmma_deploy.federated.train import train
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.system import peak_memory, process_pool, processor_features

HOW = "The subjects run one after the other, each in a process of its own."


@dataclass(frozen=True)
class Way:
    """A way to train the same federation."""

    name: str
    options: dict[str, Any]
    """Of the configuration."""
    linear: Linear | None = None
    """What multiplies with frozen weights; None takes the faster library."""


NAIVE = Way(
    "naive baseline, fp32",
    {"cache": False, "token_shortcuts": False, "client_batching": False},
    linear=F.linear,
)
OURS = Way("ours, fp32", {})
OURS_BF16 = Way("ours, bf16", {"autocast": "bf16"})


@dataclass(frozen=True)
class TrainingTask:
    """One federation whose round is timed."""

    backbone: str = "pfedmma-tiny"
    clients: int = 10
    classes: int = 10
    """Base classes; as many novel ones are evaluated, on one test image each."""
    shots: int = 16
    """Training images per base class over all clients."""
    batch_size: int = 16
    of_clients: int | None = None
    """Only so many of the clients take part, to shorten a measurement whose clients are alike."""

    @property
    def participants(self) -> int:
        """Clients that train and are evaluated."""
        return self.of_clients or self.clients

    @property
    def images(self) -> int:
        """Training images of a client."""
        return self.classes * self.shots // self.clients

    @property
    def steps(self) -> int:
        """Of all participants in a round."""
        return self.participants * math.ceil(self.images / self.batch_size)


@dataclass(frozen=True)
class TrainingSeconds:
    """What one way took for a round."""

    name: str
    train: float
    evaluate: float
    prefixes: float
    """Once, for all images: what the cached activations cost before they save."""
    memory: int
    """Peak resident bytes of the process."""
    shared: dict[str, NDArray[np.float32]]
    """The server's state at the end."""
    gpu_memory: int | None = None
    """Peak bytes of torch's tensors on the GPU; None where it computes on the CPU."""


def measure_training(backbones: Sequence[str], threads: int, progress: Progress) -> list[Row]:
    """A round with few and with many classes on each backbone, in every way."""
    rows = []
    for backbone in backbones:
        for task in round_tasks(backbone):
            found = list(time_ways(task, default_ways(), threads, progress))
            rows += training_rows(task, found)
    return rows


def training_gpu() -> str | None:
    """Name of the GPU that training uses; None where it computes on the CPU."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def round_tasks(backbone: str) -> list[TrainingTask]:
    """Rounds that are timed: of 10 clients, or of one of them where the ten take very long."""
    only = None if backbone == "pfedmma-tiny" or training_gpu() else 1
    return [TrainingTask(backbone), TrainingTask(backbone, classes=100, of_clients=only)]


def default_ways() -> list[Way]:
    """The naive baseline and ours; in bf16 where the machine multiplies such numbers itself."""
    return [NAIVE, OURS, OURS_BF16] if _multiplies_bf16() else [NAIVE, OURS]


def _multiplies_bf16() -> bool:
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    is_wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return is_wide and bool(processor_features() & {"avx512_bf16", "amx_bf16"})


def time_ways(
    task: TrainingTask, ways: Sequence[Way], threads: int, progress: Progress | None = None
) -> Iterator[TrainingSeconds]:
    """Time the ways one after the other, each in a process of its own."""
    label = f"ways to train {task.backbone}, {task.classes} classes"
    with tempfile.TemporaryDirectory(prefix="pfedmma-bench-") as folder:
        write_noise(Path(folder, "images"), task)
        for way in (progress or Silent()).track(ways, label, len(ways)):
            # Peak memory belongs to a whole process.
            with process_pool(1) as pool:
                yield pool.submit(_time_alone, task, way, threads, Path(folder)).result()


def write_noise(folder: Path, task: TrainingTask) -> None:
    """Images of random pixels, `folder/{train,val,test}/<class>/*.png`; novel classes only test."""
    rng = np.random.default_rng(0)
    size = backbone_shapes(task.backbone).image_size
    for split, classes, count in (
        ("train", task.classes, task.shots),
        ("val", task.classes, 1),
        ("test", 2 * task.classes, 1),
    ):
        for label in range(classes):
            place = folder / split / f"class {label:04d}"
            place.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                # Noise does not compress, and inflating it is not what is timed.
                Image.fromarray(pixels).save(place / f"{i}.png", compress_level=0)


def _time_alone(task: TrainingTask, way: Way, threads: int, folder: Path) -> TrainingSeconds:
    """`time_way` in a process of its own, whose settings it may change."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        # The user's own caches would save the very work that is to be timed.
        os.environ[VARIABLE] = str(Path(own, "cache"))
        return time_way(task, way, folder / "images", Path(own, "run"))


def time_way(task: TrainingTask, way: Way, images: Path, out: Path) -> TrainingSeconds:
    """Train a round on the noise in `images`, and evaluate those who took part.

    What happens once in a process is left out by training twice: compiling, and on a GPU the
    loading of kernels.
    """
    config = TrainConfig(
        data=str(images),
        backbone=task.backbone,
        pretrained=None if task.backbone == "pfedmma-tiny" else RANDOM,
        partition=PartitionConfig(clients=task.clients),
        clients_per_round=task.participants / task.clients,
        rounds=1,
        local_epochs=1,
        batch_size=task.batch_size,
        transform="none",
        **way.options,
    )
    run = train(config, out / "first", linear=way.linear).run
    caching = run.rounds[0]["seconds_by_phase"]["prefixes"]
    if config.compile or training_gpu():
        run = train(config, out / "second", linear=way.linear).run
    (record,) = run.rounds
    phases = record["seconds_by_phase"]

    # Evaluated from what is stored, as `pfedmma evaluate` does it.
    session = open_run_session(run, linear=way.linear)
    adapter, shared = session.build_adapter(), run.load_shared()
    tests = [*session.federation.base_test, *session.federation.novel_test]
    began = time.perf_counter()
    session.images.keep(tests, adapter.first_block(session.backbone, "image"))
    kept = time.perf_counter()
    scorer = open_scorer(session)
    for client in session.federation.clients:
        if client.id in record["clients"]:
            session.client_model(run.load_client(client.id), shared, adapter)
            scorer.score(adapter, [client])
    return TrainingSeconds(
        name=way.name,
        # Clients validate after each round; the evaluation is what is compared.
        train=record["seconds"] - phases["prefixes"] - phases["validate"],
        evaluate=time.perf_counter() - kept,
        prefixes=caching + kept - began,
        memory=peak_memory(),
        gpu_memory=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        shared={name: value.float().numpy() for name, value in shared.items()},
    )


def training_rows(task: TrainingTask, found: Sequence[TrainingSeconds]) -> list[Row]:
    """One per way; `images_per_second` counts training images in training."""
    naive = next((one for one in found if one.name == NAIVE.name), None)
    rows = []
    for one in found:
        row: Row = {
            "measure": "train",
            "backbone": task.backbone,
            "name": one.name,
            "clients": task.clients,
            "participants": task.participants,
            "classes": task.classes,
            "shots": task.shots,
            "images_per_second": task.participants * task.images / one.train,
            "seconds_per_round": one.train + one.evaluate,
            "seconds_training": one.train,
            "seconds_evaluation": one.evaluate,
            "seconds_per_step": one.train / task.steps,
            "seconds_prefixes": one.prefixes,
            "peak_memory": one.memory,
            "peak_gpu_memory": one.gpu_memory,
            "peer": None,
            "ratio": None,
            "weight_difference": None,
        }
        if naive is not None and one is not naive:
            moved = [np.abs(one.shared[name] - naive.shared[name]).max() for name in one.shared]
            slower = naive.train + naive.evaluate
            row |= {"peer": naive.name, "ratio": slower / row["seconds_per_round"]}
            row["weight_difference"] = float(max(moved))
        rows.append(row)
    return rows


ROUND: Columns = {
    "Backbone": ("backbone", 1),
    "Classes": ("classes", 1),
    "Shots": ("shots", 1),
    "Clients": ("clients", 1),
    "Take part": ("participants", 1),
    "Way": ("name", 1),
    "Round s": ("seconds_per_round", 1),
    "Training s": ("seconds_training", 1),
    "Evaluation s": ("seconds_evaluation", 1),
    "Step ms": ("seconds_per_step", 1000),
    "Caching s": ("seconds_prefixes", 1),
    "Peak GB": ("peak_memory", 1e-9),
    "GPU GB": ("peak_gpu_memory", 1e-9),
    "x naive": ("ratio", 1),
    "Difference": ("weight_difference", 1),
}
ROUND_NOTE = (
    "A round is the training of all participants and the evaluation of each on all test images. "
    "Naive baseline: client by client, everything recomputed, prompts at 77 tokens, matmuls by "
    "torch's default library; the others use oneDNN where that is faster. Caching: seconds once, "
    "before the first round. Difference: largest one of any shared weight after the rounds, from "
    "the naive baseline."
)


def round_section(rows: Sequence[Row]) -> Section:
    """Rounds, side by side."""
    return make_section("One round", ROUND_NOTE, ROUND, rows)
