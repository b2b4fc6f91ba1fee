"""How much is measured: all of it on a GPU, or the same in small on any machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import torch

from pfedmma_deploy.benchmark.report import Row
from pfedmma_deploy.benchmark.training import NAIVE, OURS, OURS_BF16, Way
from pfedmma_deploy.export.export_config import Flavour, Precision

NAIVE_BF16: Final = Way(
    "naive baseline, bf16", {**NAIVE.options, "autocast": "bf16"}, linear=NAIVE.linear
)
COMPILED_BF16: Final = Way("ours, bf16, compiled", {**OURS_BF16.options, "compile": True})
Reporter = Callable[[Row], None]
"""Takes a row as soon as it is measured."""


@dataclass(frozen=True)
class Plan:
    """Sizes of all steps."""

    device: Literal["cpu", "cuda"]
    backbones: tuple[str, ...]
    """The first is measured throughout, the second for the rates alone."""
    batch_sizes: tuple[int, ...]
    forms: tuple[tuple[Flavour, Precision], ...]
    """Operators (`portable`: plain, `ort`: fused) and precision of exported models."""
    clients: int
    """In a file, and in a federation."""
    scaling: tuple[int, ...]
    """Clients in one file."""
    bottleneck_dim: int
    rounds: int
    """Windows of each subject."""
    seconds: float
    """Of a window."""
    matmul: int
    """Edge of the square matrices that measure the peak."""
    photos: int
    photo_batch: int
    """Photographs that one call of the model takes."""
    classes: tuple[int, ...]
    """Base classes of the federations whose round is timed."""
    federation: int
    """Clients of these federations."""
    shots: int
    ways: tuple[Way, ...]
    """To train a round."""
    compiles: bool
    """Whether torch.compile takes part: minutes on a CPU, and another compiler than a GPU's."""
    paper_classes: int
    """Base classes of the paper's setting: as many for each client."""
    paper_rounds: int


FULL: Final = Plan(
    device="cuda",
    backbones=("ViT-B-16", "ViT-B-32"),
    batch_sizes=(1, 32, 256, 1024),
    forms=(("ort", "fp16"), ("portable", "fp16"), ("portable", "fp32"), ("ort", "fp32")),
    clients=100,
    scaling=(1, 100, 1000),
    bottleneck_dim=32,
    rounds=3,
    seconds=0.2,
    matmul=8192,
    photos=512,
    photo_batch=256,
    classes=(10, 100),
    federation=10,
    shots=16,
    ways=(NAIVE, OURS, NAIVE_BF16, OURS_BF16),
    compiles=True,
    paper_classes=100,
    paper_rounds=50,
)


def small() -> Plan:
    """A few images and clients on the embedded backbone, on the GPU where torch has one."""
    return Plan(
        device="cuda" if torch.cuda.is_available() else "cpu",
        backbones=("pfedmma-tiny",),
        batch_sizes=(1, 2),
        forms=(("portable", "fp32"),),
        clients=2,
        scaling=(2,),
        bottleneck_dim=4,
        rounds=1,
        seconds=0.001,
        matmul=256,
        photos=4,
        photo_batch=2,
        classes=(2,),
        federation=2,
        shots=2,
        ways=(OURS_BF16,),
        compiles=False,
        paper_classes=2,
        paper_rounds=2,
    )
