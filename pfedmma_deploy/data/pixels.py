"""Pixels of many examples: decoded in parallel, resized once, kept in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.data.preprocess import (
    Interpolation,
    ResizeMode,
    random_resized_crop,
    resize_crop,
)
from pfedmma_deploy.errors import DataError, ImageError
from pfedmma_deploy.types import Dataset, Example

Pixels = NDArray[np.uint8]


class PixelLoader:
    """Model-ready pixels of a data set's examples, uint8 [N, size, size, 3].

    Args:
        dataset: where images are opened.
        size: side of the square input in pixels.
        resize_mode: how open_clip's evaluation transform resizes ("shortest", ...).
        interpolation: "bicubic" or "bilinear".
        budget: bytes of resized pixels to keep; what does not fit is decoded again.
    """

    def __init__(
        self,
        dataset: Dataset,
        size: int,
        resize_mode: ResizeMode = "shortest",
        interpolation: Interpolation = "bicubic",
        budget: int = 1 << 30,
    ) -> None:
        self.dataset = dataset
        self.size = size
        self.resize_mode = resize_mode
        self.interpolation = interpolation
        self._slots = budget // (3 * size * size)
        self._kept: dict[str, Pixels] = {}
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode")

    def load(self, examples: Sequence[Example]) -> Pixels:
        """Pixels as the evaluation transform shows them (resize, centre crop), in order."""
        return self._stack(self._pool.map(self._evaluation_pixels, examples), len(examples))

    def load_random(self, examples: Sequence[Example], rng: np.random.Generator) -> Pixels:
        """Pixels under a fresh RandomResizedCrop and flip each, in order; `rng` decides all."""
        seeds = rng.integers(2**63, size=len(examples))

        def crop(example: Example, seed: int) -> Pixels:
            own = np.random.default_rng(seed)
            return self._decode(example, lambda image: random_resized_crop(image, self.size, own))

        return self._stack(self._pool.map(crop, examples, seeds), len(examples))

    def _evaluation_pixels(self, example: Example) -> Pixels:
        kept = self._kept.get(example.key)
        if kept is not None:
            return kept
        pixels = self._decode(
            example,
            lambda image: resize_crop(image, self.size, self.resize_mode, self.interpolation),
        )
        if len(self._kept) < self._slots:
            self._kept[example.key] = pixels
        return pixels

    def _decode(self, example: Example, transform: Callable[..., Pixels]) -> Pixels:
        try:
            return transform(self.dataset.open_image(example))
        except ImageError as error:
            raise DataError(
                f"The image {example.key} of {self.dataset.name} cannot be read any more: {error} "
                "Restore or remove it, then continue with --resume."
            ) from error

    def _stack(self, parts: Iterable[Pixels], count: int) -> Pixels:
        out = np.empty((count, self.size, self.size, 3), np.uint8)
        for i, pixels in enumerate(parts):
            out[i] = pixels
        return out
