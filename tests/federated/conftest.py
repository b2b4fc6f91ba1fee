"""A small federation on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pfedmma_deploy.config import PartitionConfig, TrainConfig
from tests.tinyclip import register

COLOURS = {
    "cat": (200, 60, 60),
    "dog": (60, 200, 60),
    "ship": (60, 60, 200),
    "tree": (150, 150, 30),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny models are fastest, and alike everywhere, on one thread."""
    torch.set_num_threads(1)


def write_images(folder: Path, count: int, colour: tuple[int, int, int], seed: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        pixels = np.clip(np.array(colour) + rng.integers(-50, 51, (20, 16, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")


@pytest.fixture(scope="session")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites; together four classes, of which `ship` and `tree` are novel."""
    root = tmp_path_factory.mktemp("sites")
    for i, site in enumerate(("clinic", "harbour")):
        for split, count in (("train", 4 + 2 * i), ("val", 2), ("test", 3)):
            for j, (name, colour) in enumerate(COLOURS.items()):
                write_images(root / site / split / name, count, colour, 100 * i + 10 * j + count)
    return root


@pytest.fixture
def config(sites: Path) -> TrainConfig:
    return TrainConfig(
        data=str(sites),
        backbone=register(),
        pretrained="random",
        partition=PartitionConfig(scheme="folders", num_shots=0),
        rounds=2,
        local_epochs=1,
        batch_size=4,
        parameters={"bottleneck_dim": 4, "scale": 0.1},
        lr=0.05,
        logit_scale=20.0,
        transform="random",
    )
