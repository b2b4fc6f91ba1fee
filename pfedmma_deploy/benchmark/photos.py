"""JPEG files of the size of ordinary photographs, for rates that include decoding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pfedmma_deploy.data.samples import load_sample

__all__ = ["PHOTO_SIZE", "write_photos"]

PHOTO_SIZE = (500, 375)
"""Width and height of ImageNet's typical photograph."""
SAMPLE = "domains-sample"
QUALITY = 90
NOISE = 6.0
"""Deviation of the grain that makes an enlarged image as large a file as a photograph."""


def write_photos(folder: Path, count: int) -> list[str]:
    """Write `count` JPEG files made of the embedded sample's images; returns their paths."""
    sample = load_sample(SAMPLE)
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        example = sample.examples[number * 7 % len(sample.examples)]
        enlarged = sample.open_image(example).resize(PHOTO_SIZE, Image.Resampling.BICUBIC)
        grain = rng.normal(0, NOISE, (PHOTO_SIZE[1], PHOTO_SIZE[0], 3))
        pixels = np.clip(np.asarray(enlarged) + grain, 0, 255).astype(np.uint8)
        path = folder / f"{number:04d}.jpg"
        Image.fromarray(pixels).save(path, quality=QUALITY)
        paths.append(str(path))
    return paths
