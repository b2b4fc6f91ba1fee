"""How long a round takes: the straight reading of the paper, and what this package makes of it.

Straight: client by client, every image through all blocks at every step, all prompts at their full
77 tokens at every step, every client's evaluation from pixels. Ours: frozen prefixes kept, prompts
cut, the last block computed for the token that is read, clients in cohorts, prefixes shared in
evaluation, products by the faster library (`backbone.products`); and the same in bf16. Both start
from the same weights and end, in fp32, at the same.

Images are noise and weights are random: neither changes how long a step takes. Each subject runs in
a fresh process, whose peak memory is its own.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from pfedmma_deploy.backbone.images import ImageInputs
from pfedmma_deploy.backbone.loading import load_backbone
from pfedmma_deploy.backbone.prefixes import PrefixStore
from pfedmma_deploy.backbone.products import fast_linear
from pfedmma_deploy.backbone.texts import class_texts, with_prefix
from pfedmma_deploy.data.pixels import PixelLoader
from pfedmma_deploy.evaluation.accuracy import Scorer
from pfedmma_deploy.federated.engine import InProcessEngine
from pfedmma_deploy.methods.client_run import LocalTraining, Prompts
from pfedmma_deploy.methods.pfedmma import PFEDMMA
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.store.checkpoint import Checkpoint
from pfedmma_deploy.system import peak_memory, process_pool
from pfedmma_deploy.types import ClientData, Example, Federation, Scope, Skipped

STRAIGHT = "straight, fp32"
SAME_PRODUCTS = "ours, fp32, torch's products"
"""Ours with the library that torch multiplies with by default, as the straight reading."""
OURS = "ours, fp32"
OURS_BF16 = "ours, bf16"
TEMPLATE = "a photo of a {}."


@dataclass(frozen=True)
class TrainingTask:
    """One federation whose round is timed."""

    backbone: str = "pfedmma-tiny"
    clients: int = 10
    classes: int = 10
    """Base classes; as many novel ones are evaluated."""
    shots: int = 16
    """Training images per base class over all clients."""
    tests: int = 1
    """Test images per class, base and novel."""
    batch_size: int = 16
    rounds: int = 1
    """Timed ones, after a first that fills caches."""
    of_clients: int | None = None
    """Only so many of the clients take part, to shorten a measurement whose clients are alike."""

    @property
    def participants(self) -> int:
        """Clients that train and are evaluated."""
        return self.of_clients or self.clients


@dataclass(frozen=True)
class TrainingSeconds:
    """What one subject took; seconds of a round are medians over the rounds."""

    name: str
    train: float
    evaluate: float
    step: float
    """One client's step: forward, backward, update."""
    prefixes: float
    """Once, for all images: what the cache costs before it saves."""
    memory: int
    """Peak resident bytes of the process."""
    shared: dict[str, NDArray[np.float32]]
    """The server's state at the end."""

    @property
    def round(self) -> float:
        """Training and evaluation of all participants."""
        return self.train + self.evaluate


def bench_training(
    task: TrainingTask,
    subjects: Sequence[str],
    threads: int,
    progress: Progress | None = None,
) -> list[TrainingSeconds]:
    """Time the subjects one after the other, each in a process of its own."""
    found = []
    label = f"ways to train {task.backbone}, {task.classes} classes"
    for name in (progress or Silent()).track(subjects, label, len(subjects)):
        with process_pool(1) as pool:
            found.append(pool.submit(time_subject, task, name, threads).result())
    return found


def weight_difference(one: TrainingSeconds, other: TrainingSeconds) -> float:
    """Largest difference of one number of the two server states."""
    return max(float(np.abs(one.shared[n] - other.shared[n]).max()) for n in one.shared)


def time_subject(task: TrainingTask, name: str, threads: int) -> TrainingSeconds:
    """Train and evaluate `task.rounds` rounds in one of the ways."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    is_straight = name == STRAIGHT
    pretrained = None if task.backbone == "pfedmma-tiny" else "random"
    backbone = replace(
        load_backbone(task.backbone, pretrained),
        shortcuts=not is_straight,
        linear=F.linear if name in (STRAIGHT, SAME_PRODUCTS) else fast_linear,
        precision="bf16" if name == OURS_BF16 else "none",
    )
    federation = noise_federation(task, backbone.image_size)
    pixels = PixelLoader(federation.dataset, backbone.image_size)
    with tempfile.TemporaryDirectory() as folder:
        store = None
        if not is_straight:
            store = PrefixStore(backbone, Path(folder) / "prefixes", 1 << 36)
        images = ImageInputs(pixels, store)
        adapter = PFEDMMA.build(backbone, PFEDMMA.parameters(), torch.Generator().manual_seed(0))
        options = LocalTraining(
            epochs=1,
            batch_size=task.batch_size,
            lr=1e-3,
            momentum=0.9,
            weight_decay=5e-4,
            random_transform=False,
            logit_scale=backbone.logit_scale,
        )
        names = federation.names(federation.base)
        texts = class_texts(backbone, names, TEMPLATE)
        if store is not None:
            texts = with_prefix(backbone, texts, adapter.first_block(backbone, "text"))
        engine = InProcessEngine(
            backbone=backbone,
            method=PFEDMMA,
            adapter=adapter,
            clients=federation.clients,
            images=images,
            prompts=Prompts(texts, {label: i for i, label in enumerate(federation.base)}),
            options=options,
            checkpoint=Checkpoint(Path(folder) / "checkpoint"),
            seed=0,
            together=not is_straight,
        )
        scorer = Scorer(backbone, federation, images, TEMPLATE, backbone.logit_scale)
        return _run(task, name, engine, scorer)


def _run(task: TrainingTask, name: str, engine: InProcessEngine, scorer: Scorer) -> TrainingSeconds:
    clients = scorer.federation.clients[: task.participants]
    ids = [client.id for client in clients]
    start = engine.adapter.first_block(engine.backbone, "image")
    began = time.perf_counter()
    everything = [*scorer.federation.base_test, *scorer.federation.novel_test]
    engine.images.keep([*everything, *(e for c in clients for e in c.train)], start)
    prefixes = time.perf_counter() - began
    shared = engine.adapter.tensors(Scope.SHARED)
    train, evaluate, steps = [], [], 0
    for round in range(task.rounds):
        began = time.perf_counter()
        reports = list(engine.run_round(round, ids, shared))
        shared = PFEDMMA.aggregate([report.update for report in reports], shared)
        engine.checkpoint.commit(round, shared, {})
        middle = time.perf_counter()
        for client in clients:
            state = engine.checkpoint.load_client(client.id)
            assert state is not None
            engine.adapter.load(state.own, shared)
            scorer.score(engine.adapter, [client])
        train.append(middle - began)
        evaluate.append(time.perf_counter() - middle)
        steps = sum(-(-len(client.train) // task.batch_size) for client in clients)
    return TrainingSeconds(
        name=name,
        train=float(np.median(train)),
        evaluate=float(np.median(evaluate)),
        step=float(np.median(train)) / steps,
        prefixes=prefixes,
        memory=peak_memory(),
        shared={key: value.float().numpy() for key, value in shared.items()},
    )


def noise_federation(task: TrainingTask, size: int) -> Federation:
    """Clients of equal size whose images are noise; every class is on every client it fits on."""
    base = tuple(range(task.classes))
    novel = tuple(range(task.classes, 2 * task.classes))
    train = [
        Example(f"train-{i}", i % task.classes, "train") for i in range(task.classes * task.shots)
    ]
    tests = [
        Example(f"test-{label}-{i}", label, "test")
        for label in (*base, *novel)
        for i in range(task.tests)
    ]
    dataset = _Noise(size, 2 * task.classes, (*train, *tests))
    base_test = tuple(example for example in tests if example.label in base)
    share = len(train) // task.clients
    clients = []
    for i in range(task.clients):
        own = tuple(train[i * share : (i + 1) * share])
        seen = {example.label for example in own}
        test = tuple(example for example in base_test if example.label in seen)
        clients.append(ClientData(str(i), tuple(sorted(seen)), own, (), test))
    novel_test = tuple(example for example in tests if example.label in novel)
    return Federation(dataset, base, novel, tuple(clients), base_test, novel_test)


class _Noise:
    """Images of random pixels, each drawn from its key."""

    def __init__(self, size: int, classes: int, examples: tuple[Example, ...]) -> None:
        self.name = "noise"
        self.class_names = tuple(f"class {i}" for i in range(classes))
        self.examples = examples
        self.skipped: tuple[Skipped, ...] = ()
        self._size = size
        self._seeds = {example.key: i for i, example in enumerate(examples)}

    def open_image(self, example: Example) -> Image.Image:
        """The image of an example."""
        rng = np.random.default_rng(self._seeds[example.key])
        return Image.fromarray(rng.integers(0, 256, (self._size, self._size, 3), dtype=np.uint8))
