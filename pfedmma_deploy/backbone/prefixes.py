"""Prefix cache: what the frozen lower blocks make of an image, kept on disk.

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
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfedmma_deploy.backbone.clip import Backbone, Prefix
from pfedmma_deploy.backbone.flops import image_tokens
from pfedmma_deploy.errors import UsageError

KIND = "prefixes"
LIMIT_VARIABLE = "PFEDMMA_PREFIX_GB"
"""Environment variable: bound on the whole cache, in gigabytes."""
DEFAULT_LIMIT_GB = 8.0
BATCH = 32
"""Images in one pass: larger ones are slower on a CPU."""
SHARD = 1 << 28
"""Bytes of a shard at most."""

Pixels = NDArray[np.uint8]
Row = tuple[NDArray[np.float32], int]
Decode = Callable[[Sequence[int]], Pixels]
"""Places among the images that were named -> their pixels, uint8 [N, H, W, 3]."""


class PrefixStore:
    """Prefixes of one backbone, by the pixels of an image.

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

    def load(self, keys: Sequence[str], start: int, decode: Decode) -> Prefix:
        """The prefixes of images, each by its `key_of`.

        What is not kept is decoded, computed and forgotten: `keep` beforehand what is needed again.
        """
        rows = self._known(start)
        missing = [i for i, key in enumerate(keys) if key not in rows]
        computed = iter(self._compute(decode(missing), start)) if missing else iter(())
        tokens = [
            torch.from_numpy(rows[key][0][rows[key][1]]) if key in rows else next(computed)
            for key in keys
        ]
        return Prefix(torch.stack(tokens), start)

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
            if folder_size(self.root) + len(part) * each > self.limit:
                return
            values = self._compute(decode(part), start).numpy()
            self._write(start, values, [keys[i] for i in part])

    @torch.no_grad()
    def _compute(self, pixels: Pixels, start: int) -> Tensor:
        parts = [
            self.backbone.image_prefix(torch.from_numpy(pixels[i : i + BATCH]), start).tokens
            for i in range(0, len(pixels), BATCH)
        ]
        return torch.cat(parts).float().cpu()

    def _numbers(self, start: int) -> int:
        """Numbers of one image's prefix: its tokens, or its feature where no block is left."""
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

    def _make_room(self, needed: int) -> None:
        """Remove the shards that were opened longest ago until `needed` bytes fit."""
        assert self.root is not None
        mine = {row[0].filename for rows in self._rows.values() for row in rows.values()}  # type: ignore[attr-defined]  # a memory map has its file's name
        shards = sorted(self.root.glob("*/*.npy"), key=lambda path: path.stat().st_mtime)
        for shard in shards:
            if folder_size(self.root) + needed <= self.limit:
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
    text = os.environ.get(LIMIT_VARIABLE, "") or str(DEFAULT_LIMIT_GB)
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 <= limit < math.inf:
        raise UsageError(
            f"{LIMIT_VARIABLE} should be a number of gigabytes, such as 8, found {text!r}."
        )
    return int(limit * 1e9)


def folder_size(folder: Path) -> int:
    """Bytes of all files below; one that goes meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


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
