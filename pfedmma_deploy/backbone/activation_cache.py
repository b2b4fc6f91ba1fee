"""Images as a model takes them: pixels, or activations of the frozen lower blocks, cached on disk.

    <cache>/prefixes/<model>-<start>/<name>.npy     float32 [N, T, d], memory-mapped when read
    <cache>/prefixes/<model>-<start>/<name>.json    SHA-256 of each image's pixels, in row order

A shard is written whole, the list of its images last, so another process sees all of it or nothing;
two processes that compute the same images waste space and harm nothing. The folder is bounded: the
shards that were opened longest ago go first, and what finds no room is computed again each time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import uuid
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfedmma_deploy.backbone.clip import Activations, Backbone, Images
from pfedmma_deploy.backbone.flops import image_tokens
from pfedmma_deploy.caches import folder_size
from pfedmma_deploy.data.pixels import PixelLoader
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.types import Example

KIND = "prefixes"  # the folder's name since version 0.1
LIMIT_VARIABLE = "PFEDMMA_CACHE_GB"
"""Environment variable: bound on the whole cache, in gigabytes."""
OLD_LIMIT_VARIABLE = "PFEDMMA_PREFIX_GB"
"""Its name in version 0.1, still read."""
DEFAULT_LIMIT_GB = 8.0
BATCH = 32
"""Images in one pass: larger ones are slower on a CPU."""
SHARD = 1 << 28
"""Bytes of a shard at most."""

KEEP_AT_ONCE = 512
"""Images decoded together when activations are cached."""
PLAIN = -1
"""In place of the number of a view: the evaluation transform."""
Shown = tuple[Example, int]
"""An example and the number of its view."""

Pixels = NDArray[np.uint8]
Row = tuple[NDArray[np.float32], int]
Decode = Callable[[Sequence[int]], Pixels]
"""Places among the images that were named -> their pixels, uint8 [N, H, W, 3]."""


class ActivationCache:
    """Activations of one backbone's frozen blocks, by the pixels of an image.

    Args:
        backbone: frozen; its fingerprint and precision are part of every name.
        folder: `cache_folder("prefixes")`; None keeps nothing.
        limit: bytes of the whole folder, other models' included.
    """

    def __init__(self, backbone: Backbone, folder: Path | None, limit: int) -> None:
        self.backbone = backbone
        self.root = folder
        self.limit = limit
        self._rows: dict[int, dict[str, Row]] = {}

    def load(self, keys: Sequence[str], start: int, decode: Decode) -> Activations:
        """The activations of images, each by its `key_of`.

        What is not cached is decoded, computed and forgotten: `keep` what is needed again first.
        """
        rows = self._known(start)
        missing = [i for i, key in enumerate(keys) if key not in rows]
        computed = iter(self._compute(decode(missing), start)) if missing else iter(())
        tokens = [
            torch.from_numpy(rows[key][0][rows[key][1]]) if key in rows else next(computed)
            for key in keys
        ]
        return Activations(torch.stack(tokens), start)

    def keep(self, keys: Sequence[str], start: int, decode: Decode) -> None:
        """Compute and keep what is missing of these images, as far as there is room."""
        rows = self._known(start)
        wanted = {key: i for i, key in enumerate(keys) if key not in rows}
        if self.root is None or not wanted:
            return
        chosen = list(wanted.values())
        each = 4 * self._numbers(start)
        per_shard = max(1, SHARD // each)
        self._make_room(min(len(chosen) * each, self.limit))
        for first in range(0, len(chosen), per_shard):
            part = chosen[first : first + per_shard]
            if self._size() + len(part) * each > self.limit:
                return
            values = self._compute(decode(part), start).numpy()
            self._write(start, values, [keys[i] for i in part])

    @torch.no_grad()
    def _compute(self, pixels: Pixels, start: int) -> Tensor:
        parts = [
            self.backbone.image_activations(torch.from_numpy(pixels[i : i + BATCH]), start).tokens
            for i in range(0, len(pixels), BATCH)
        ]
        return torch.cat(parts).float().cpu()

    def _numbers(self, start: int) -> int:
        """Numbers kept of one image: its tokens, or its feature where no block is left."""
        backbone = self.backbone
        if start == backbone.depth("image"):
            return backbone.embed_dim
        return image_tokens(backbone) * backbone.width("image")

    def _known(self, start: int) -> dict[str, Row]:
        if start not in self._rows:
            self._rows[start] = {}
            folder = self._folder(start)
            if folder is not None:
                for index in sorted(folder.glob("*.json")):
                    self._rows[start].update(_read_shard(index))
        return self._rows[start]

    def _write(self, start: int, values: NDArray[np.float32], keys: list[str]) -> None:
        folder = self._folder(start)
        assert folder is not None
        folder.mkdir(parents=True, exist_ok=True)
        name = uuid.uuid4().hex
        partial = folder / f"{name}.partial"
        with partial.open("wb") as handle:
            np.save(handle, values)
        partial.replace(folder / f"{name}.npy")
        partial.write_text(json.dumps(keys), "utf-8")
        partial.replace(folder / f"{name}.json")
        self._rows[start].update(_read_shard(folder / f"{name}.json"))

    def _folder(self, start: int) -> Path | None:
        if self.root is None:
            return None
        backbone = self.backbone
        return self.root / f"{backbone.fingerprint[:16]}-{backbone.precision}-{start}"

    def _size(self) -> int:
        return folder_size(self.root)[1]

    def _make_room(self, needed: int) -> None:
        """Remove the shards that were opened longest ago until `needed` bytes fit."""
        assert self.root is not None
        mine = {row[0].filename for rows in self._rows.values() for row in rows.values()}  # type: ignore[attr-defined]  # a memory map has its file's name
        shards = sorted(self.root.glob("*/*.npy"), key=lambda path: path.stat().st_mtime)
        for shard in shards:
            if self._size() + needed <= self.limit:
                return
            if str(shard) not in mine:
                shard.with_suffix(".json").unlink(missing_ok=True)
                shard.unlink(missing_ok=True)


def key_of(pixels: Pixels) -> str:
    """Key of one image's pixels [H, W, 3]: content and transform in one."""
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def limit_bytes() -> int:
    """The bound on the cache, from the environment or the default.

    Raises:
        UsageError: the variable is not a number of gigabytes.
    """
    name = LIMIT_VARIABLE if os.environ.get(LIMIT_VARIABLE) else OLD_LIMIT_VARIABLE
    text = os.environ.get(name, "") or str(DEFAULT_LIMIT_GB)
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 <= limit < math.inf:
        raise UsageError(f"{name} should be a number of gigabytes, such as 8, found {text!r}.")
    return int(limit * 1e9)


def _read_shard(index: Path) -> dict[str, Row]:
    """The rows of a shard; nothing of one that is damaged or was removed meanwhile."""
    file = index.with_suffix(".npy")
    try:
        keys = json.loads(index.read_text("utf-8"))
        values = np.load(file, mmap_mode="c", allow_pickle=False)
        os.utime(file)
    except (OSError, ValueError):
        return {}
    fits = isinstance(keys, list) and values.dtype == np.float32 and len(keys) == len(values)
    return {key: (values, row) for row, key in enumerate(keys)} if fits else {}


class ImageInputs:
    """Examples as input of the image tower.

    Args:
        pixels: decodes and resizes.
        cache: cached activations; None has every image go through all blocks, every time.
        views: number of pre-drawn augmentations per image; 0 draws a fresh one each time.
        seed: decides the pre-drawn augmentations.
    """

    def __init__(
        self,
        pixels: PixelLoader,
        cache: ActivationCache | None = None,
        *,
        views: int = 0,
        seed: int = 0,
    ) -> None:
        self.pixels = pixels
        self.cache = cache
        self.views = views
        self.seed = seed
        self._keys: dict[tuple[str, int], str] = {}

    def load(self, examples: Sequence[Example], start: int = 0) -> Images:
        """Images under the evaluation transform; with `start`, the input of that block."""
        if self.cache is None or start == 0:
            return torch.from_numpy(self.pixels.load(examples))
        shown = [(example, PLAIN) for example in examples]
        return self.cache.load(self._keys_of(shown), start, self._decoder(shown))

    def load_random(
        self, examples: Sequence[Example], rng: np.random.Generator, start: int = 0
    ) -> Images:
        """Images under a random crop and flip; with `views`, one of each image's drawn ones."""
        if self.views == 0:
            return torch.from_numpy(self.pixels.load_random(examples, rng))
        views = rng.integers(self.views, size=len(examples)).tolist()
        shown = list(zip(examples, views, strict=True))
        decode = self._decoder(shown)
        if self.cache is None or start == 0:
            return torch.from_numpy(decode(range(len(shown))))
        return self.cache.load(self._keys_of(shown), start, decode)

    def keep(self, examples: Sequence[Example], start: int, *, is_random: bool = False) -> None:
        """Cache the activations of examples that will be needed again, as far as there is room.

        With `is_random`, those of their views; fresh augmentations are never seen twice.
        """
        if self.cache is None or start == 0 or (is_random and self.views == 0):
            return
        views = range(self.views) if is_random else (PLAIN,)
        shown = [(example, view) for example in examples for view in views]
        for first in range(0, len(shown), KEEP_AT_ONCE):
            part = shown[first : first + KEEP_AT_ONCE]
            self.cache.keep(self._keys_of(part), start, self._decoder(part))

    def _decoder(self, shown: Sequence[Shown]) -> Decode:
        def decode(places: Sequence[int]) -> Pixels:
            return np.concatenate([self._decode(*shown[place]) for place in places])

        return decode

    def _decode(self, example: Example, view: int) -> Pixels:
        if view == PLAIN:
            return self.pixels.load([example])
        # Keys are text, so the image's part of the seed is its checksum.
        seed = [self.seed, zlib.crc32(example.key.encode()), view]
        return self.pixels.load_random([example], np.random.default_rng(seed))

    def _keys_of(self, shown: Sequence[Shown]) -> list[str]:
        """Each image's key; the first time it is decoded for it."""
        found = []
        for example, view in shown:
            place = (example.key, view)
            if place not in self._keys:
                self._keys[place] = key_of(self._decode(example, view)[0])
            found.append(self._keys[place])
        return found
