"""What is known of each image file: that it can be read, a hash of its pixels, its size.

Reading all images of a large folder takes minutes, so what was found is kept in the user's cache
folder, one row a file. A row counts as long as the file's path, size and change times are the same.
A cache file that is damaged is passed over, and is never unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from PIL import Image, ImageStat

from pfedmma_deploy.data import scan
from pfedmma_deploy.data.images import verify_image
from pfedmma_deploy.data.readers.base import StoredDataset
from pfedmma_deploy.errors import ImageError
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.types import Dataset, Example

_BATCH: Final = 64
_ROW: Final = np.dtype(
    [("mark", "<u8"), ("digest", "V16"), ("width", "<u4"), ("height", "<u4"), ("spread", "<f8")]
)
"""A file that was only read to its end has a width of 0."""
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class ImageStats:
    """One image in figures."""

    digest: str
    """Of the decoded RGB pixels: copies are found whatever the file name, format or metadata."""
    width: int
    height: int
    spread: float
    """Largest standard deviation of a colour channel, 0 to 127.5; 0 where all pixels are equal."""


def measure(image: Image.Image) -> ImageStats:
    """The figures of decoded RGB pixels."""
    # With the size, because the same bytes in other rows are another picture.
    digest = hashlib.blake2b(f"{image.width}x{image.height}:".encode(), digest_size=16)
    digest.update(image.tobytes())
    spread = max(ImageStat.Stat(image).stddev)
    return ImageStats(digest.hexdigest(), image.width, image.height, spread)


def read_stats(
    dataset: Dataset,
    examples: Iterable[Example],
    *,
    limit: int | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, ImageStats], dict[str, str]]:
    """Looks at each image once.

    Args:
        dataset: whose images; what was found of the files of a large one is remembered.
        examples: which of them.
        limit: where more images than this would have to be read, none is.
        progress: told of images.

    Returns:
        Figures by key, and the reason by key for images that cannot be read.
    """
    wanted = {example.key: example for example in examples}
    # With a `source`, keys need not be the names of files.
    is_large = dataset.source is None and len(dataset.examples) >= scan.MIN_IMAGES
    memory = _Memory(dataset.root if is_large else None, list(wanted))
    known = memory.stats()
    todo = [key for key in wanted if key not in known]
    if limit is not None and len(todo) > limit:
        todo = []

    def look(key: str) -> ImageStats:
        return measure(dataset.open_image(wanted[key]))

    found, broken = _look_at_all(todo, look, "images looked at", progress or Silent())
    memory.add(found)
    return known | found, broken


def find_broken(dataset: StoredDataset, *, cache: bool, progress: Progress) -> dict[str, str]:
    """Reason by key of the images that cannot be read to their end.

    With `cache`, what was read of a large folder is remembered.
    """
    keys = [example.key for example in dataset.examples]
    is_large = dataset.source is None and len(keys) >= scan.MIN_IMAGES
    memory = _Memory(dataset.root if cache and is_large else None, keys)
    readable = memory.readable()

    def verify(key: str) -> None:
        place = dataset.locate(key)
        if not isinstance(place, Image.Image):  # else it is decoded already
            verify_image(place)

    todo = [key for key in keys if key not in readable]
    found, broken = _look_at_all(todo, verify, "images read", progress)
    memory.add(found, keep_others=False)
    return broken


def _look_at_all(
    keys: Sequence[str], look: Callable[[str], Found], label: str, progress: Progress
) -> tuple[dict[str, Found], dict[str, str]]:
    """What `look` finds by key, and the reason by key where it raises `ImageError`."""
    found: dict[str, Found] = {}
    broken: dict[str, str] = {}
    if not keys:
        return found, broken

    def look_at(batch: Sequence[str]) -> Sequence[str]:
        for key in batch:
            try:
                found[key] = look(key)
            except ImageError as error:
                broken[key] = str(error)
        return batch

    # Batches, because one future per image would cost more than the image.
    batches = [keys[start : start + _BATCH] for start in range(0, len(keys), _BATCH)]
    # Threads: Pillow decodes without holding Python's lock.
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        looked_at = chain.from_iterable(pool.map(look_at, batches))
        deque(progress.track(looked_at, label, len(keys)), maxlen=0)
    # In the order of the keys: threads finish in any order.
    return found, {key: broken[key] for key in keys if key in broken}


class _Memory:
    """What is remembered of some of the files below a root; without a root or caches, nothing.

    To be made before the files are read: a file that changes meanwhile is read again next time.
    """

    def __init__(self, root: Path | None, keys: Sequence[str]) -> None:
        self._marks: dict[str, int] = {}
        self._rows = np.empty(0, _ROW)
        self._file = None if root is None else scan.cache_file(root, "images.npy")
        if root is not None and self._file is not None:
            self._marks = _marks(root, keys)
            with contextlib.suppress(OSError, ValueError, EOFError):
                rows = np.load(self._file, allow_pickle=False)
                if isinstance(rows, np.ndarray) and rows.dtype == _ROW and rows.ndim == 1:
                    self._rows = rows

    def readable(self) -> set[str]:
        """The files that were readable when last read, and have not changed."""
        known = set(self._rows["mark"].tolist())
        return {key for key, mark in self._marks.items() if mark in known}

    def stats(self) -> dict[str, ImageStats]:
        """The figures that still hold."""
        known = {}
        for mark, digest, *figures in self._rows[self._rows["width"] > 0].tolist():
            known[mark] = ImageStats(digest.hex(), *figures)
        return {key: known[mark] for key, mark in self._marks.items() if mark in known}

    def add(self, found: Mapping[str, ImageStats | None], *, keep_others: bool = True) -> None:
        """Adds what was found of files; without `keep_others`, all that are not these is dropped.

        Files that are listed no more leave the memory that way.
        """
        if self._file is None or not found:
            return
        rows = np.zeros(len(found), _ROW)
        for row, (key, stats) in zip(rows, found.items(), strict=True):
            row["mark"] = self._marks.get(key, 0)
            if stats is not None:
                row["digest"] = bytes.fromhex(stats.digest)
                row["width"], row["height"] = stats.width, stats.height
                row["spread"] = stats.spread
        old = self._rows[~np.isin(self._rows["mark"], rows["mark"])]
        if not keep_others:
            old = old[np.isin(old["mark"], list(self._marks.values()))]
        buffer = BytesIO()
        both = np.concatenate([old, rows])
        np.save(buffer, both[both["mark"] != 0], allow_pickle=False)
        scan.write_cache(self._file, buffer.getvalue())


def _marks(root: Path, keys: Sequence[str]) -> dict[str, int]:
    """64 bits that tell each file from any other state of it; 0 where there is none."""
    marks = dict.fromkeys(keys, 0)
    for key in keys:
        # A Path for each of a million files takes longer than the call itself.
        with contextlib.suppress(OSError):
            status = os.stat(f"{root}/{key}")  # noqa: PTH116
            text = f"{key}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}"
            digest = hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest()
            marks[key] = int.from_bytes(digest, "little")
    return marks
