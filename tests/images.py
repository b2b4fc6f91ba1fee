"""Data sets in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pfedmma_deploy.types import Dataset, Example, Split


class MemoryDataset(Dataset):
    """Images of `size` px whose colour depends on the label, with noise; one per label given."""

    def __init__(
        self,
        class_names: tuple[str, ...],
        labels: Sequence[int],
        size: int = 16,
        split: Split = "train",
    ) -> None:
        rng = np.random.default_rng(5)
        self.name = "memory"
        self.class_names = class_names
        self.examples: tuple[Example, ...] = tuple(
            Example(f"{i}.png", label, split) for i, label in enumerate(labels)
        )
        self.pixels: dict[str, NDArray[np.uint8]] = {}
        for example in self.examples:
            colour = np.array([60 * example.label, 120, 255 - 60 * example.label])
            noise = rng.integers(-50, 51, (size, size, 3))
            self.pixels[example.key] = np.clip(colour + noise, 0, 255).astype(np.uint8)

    def open_image(self, example: Example) -> Image.Image:
        return Image.fromarray(self.pixels[example.key])
