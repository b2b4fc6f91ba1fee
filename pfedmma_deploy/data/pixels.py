"""From decoded images to the square of pixels that a backbone takes, one or many.

`resize_crop` gives, bit for bit, what open_clip's evaluation transform gives before it makes a
tensor of it (`open_clip.image_transform(..., is_train=False)`), with Pillow and numpy alone: the
runtime has no torch, and a resize that differs from the training's costs more accuracy than any
quantization. `random_resized_crop` is the usual training transform, driven by numpy's generator.
`PixelLoader` does either for a whole data set.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pfedmma_deploy.errors import DataError, ImageError
from pfedmma_deploy.types import Dataset, Example

Pixels = NDArray[np.uint8]
ResizeMode = Literal["shortest", "squash", "longest"]
Interpolation = Literal["bicubic", "bilinear"]

MAX_RESIZED_PIXELS = 1 << 27
"""A 1 x 90,000,000 strip would be blown up to terabytes before its centre is cut out."""

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def resize_crop(
    image: Image.Image,
    size: int,
    mode: ResizeMode = "shortest",
    interpolation: Interpolation = "bicubic",
) -> Pixels:
    """Evaluation transform: one image to `[size, size, 3]` uint8.

    Args:
        image: any mode; converted to RGB first, as open_clip's own data loaders do.
        size: edge of the square, in pixels.
        mode: `shortest` scales the shorter edge to `size` and cuts out the centre, `squash`
            ignores the aspect ratio, `longest` fits the whole image and pads with black.
        interpolation: Pillow's antialiased `bicubic` or `bilinear`.

    Raises:
        ImageError: the image is so long and thin that it cannot be resized.
    """
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    width, height = _resized(rgb.width, rgb.height, size, mode)
    if (width, height) != rgb.size:
        rgb = rgb.resize((width, height), _FILTERS[interpolation])
    # Python's round: torchvision's centre crop rounds half to even too. The padding of `longest`,
    # where the window starts outside, is rounded down.
    left, top = (round(d / 2) if d >= 0 else -(-d // 2) for d in (width - size, height - size))
    if (left, top, width, height) != (0, 0, size, size):
        # A box that reaches past the edge is filled with black.
        rgb = rgb.crop((left, top, left + size, top + size))
    return np.asarray(rgb, dtype=np.uint8)


def random_resized_crop(
    image: Image.Image,
    size: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Pixels:
    """Training transform: a random part of one image, `[size, size, 3]` uint8, mirrored or not.

    The part covers a share of the area drawn from `scale` at an aspect ratio drawn (on a log scale)
    from `ratio`; after ten draws that do not fit, the largest centred part within `ratio` is taken.
    Bicubic, mirrored with probability 1/2.
    Source: Szegedy et al., arXiv 1409.4842, as torchvision's `RandomResizedCrop` has it.
    """
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = rgb.width * rgb.height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*log_ratio))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= rgb.width and 0 < h <= rgb.height:
            top = int(rng.integers(0, rgb.height - h + 1))
            left = int(rng.integers(0, rgb.width - w + 1))
            break
    else:
        w, h = rgb.size
        if w / h < ratio[0]:
            h = max(1, min(h, round(w / ratio[0])))
        elif w / h > ratio[1]:
            w = max(1, min(w, round(h * ratio[1])))
        left, top = (rgb.width - w) // 2, (rgb.height - h) // 2
    part = rgb.crop((left, top, left + w, top + h))
    pixels = np.asarray(part.resize((size, size), _FILTERS["bicubic"]), dtype=np.uint8)
    if rng.random() < 0.5:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    return pixels


def _resized(width: int, height: int, size: int, mode: ResizeMode) -> tuple[int, int]:
    """Width and height to scale to before the crop, as torchvision and open_clip round them."""
    if mode == "squash":
        return size, size
    if mode == "longest":
        ratio = max(height / size, width / size)
        new = round(width / ratio), round(height / ratio)
    elif width <= height:
        new = size, int(size * height / width)
    else:
        new = int(size * width / height), size
    if min(new) < 1 or new[0] * new[1] > MAX_RESIZED_PIXELS:
        raise ImageError(
            f"{width} x {height} pixels is too long and thin: scaled to {size} ({mode} edge) "
            f"it would be {new[0]} x {new[1]}; crop it first"
        )
    return new


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
        # One generator each, drawn before the work is shared out: threads finish in any order.
        seeds = rng.integers(2**63, size=len(examples))

        def crop(example: Example, seed: int) -> Pixels:
            own = np.random.default_rng(seed)
            return self._decode(example, random_resized_crop, self.size, own)

        return self._stack(self._pool.map(crop, examples, seeds), len(examples))

    def _evaluation_pixels(self, example: Example) -> Pixels:
        kept = self._kept.get(example.key)
        if kept is not None:
            return kept
        pixels = self._decode(example, resize_crop, self.size, self.resize_mode, self.interpolation)
        # What came first stays: dropping the oldest would drop, in every round, what comes next.
        if len(self._kept) < self._slots:
            self._kept[example.key] = pixels
        return pixels

    def _decode(self, example: Example, transform: Callable[..., Pixels], *options: Any) -> Pixels:
        try:
            return transform(self.dataset.open_image(example), *options)
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
