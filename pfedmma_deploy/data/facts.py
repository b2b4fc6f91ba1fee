"""What the checks need to know of each image: a hash of its pixels, its size, whether it is blank.

Reading all images takes minutes for large data sets, so what was found is kept on disk and used
again for files whose size and time of change are the same.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image, ImageStat

from pfedmma_deploy.caches import cache_folder
from pfedmma_deploy.data.index import MIN_IMAGES
from pfedmma_deploy.errors import ImageError
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.types import Dataset, Example

__all__ = ["Facts", "facts_folder", "measure", "read_facts"]

_BATCH: Final = 64
_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, stamp TEXT, digest TEXT,"
    " width INTEGER, height INTEGER, spread REAL)"
)


@dataclass(frozen=True, slots=True)
class Facts:
    """One image in figures."""

    digest: str
    """Of the decoded RGB pixels: copies are found whatever the file name, format or metadata."""
    width: int
    height: int
    spread: float
    """Largest standard deviation of a colour channel, 0 to 127.5; 0 where all pixels are equal."""


def facts_folder() -> Path | None:
    """Where facts are kept, or None where caches are off."""
    return cache_folder("facts")


def read_facts(
    dataset: Dataset,
    examples: Iterable[Example],
    *,
    cache: Path | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Facts], dict[str, str]]:
    """Looks at each image once.

    Args:
        dataset: whose images; those of a data set with a `root` are files below it.
        examples: which of them.
        cache: folder to keep the facts of files in; None keeps nothing. Data sets of less than
            `index.MIN_IMAGES` images are read faster than they are looked up.
        limit: where more images than this would have to be read, none is.
        progress: told of batches of images.

    Returns:
        Facts by key, and the reason by key for images that cannot be read.
    """
    keys = {example.key: example for example in examples}
    store = _Store(dataset, cache)
    stamps = store.stamps(keys)
    facts = store.load(stamps)
    todo = [example for key, example in keys.items() if key not in facts]
    if limit is not None and len(todo) > limit:
        todo = []
    found, broken = _read(dataset, todo, progress or Silent())
    store.save({key: fact for key, fact in found.items() if key in stamps}, stamps)
    return facts | found, broken


def measure(image: Image.Image) -> Facts:
    """The facts of decoded RGB pixels."""
    digest = hashlib.blake2b(f"{image.width}x{image.height}:".encode(), digest_size=16)
    digest.update(image.tobytes())
    spread = max(ImageStat.Stat(image).stddev)
    return Facts(digest.hexdigest(), image.width, image.height, spread)


def _read(
    dataset: Dataset, examples: Sequence[Example], progress: Progress
) -> tuple[dict[str, Facts], dict[str, str]]:
    def look(batch: Sequence[Example]) -> list[tuple[str, Facts | str]]:
        return [(example.key, _facts_or_reason(dataset, example)) for example in batch]

    batches = [examples[start : start + _BATCH] for start in range(0, len(examples), _BATCH)]
    found: dict[str, Facts] = {}
    broken: dict[str, str] = {}
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        results = pool.map(look, batches)
        for rows in progress.track(results, "batches of images looked at", len(batches)):
            for key, fact in rows:
                if isinstance(fact, Facts):
                    found[key] = fact
                else:
                    broken[key] = fact
    return found, broken


def _facts_or_reason(dataset: Dataset, example: Example) -> Facts | str:
    try:
        return measure(dataset.open_image(example))
    except ImageError as error:
        return str(error)


class _Store:
    """Facts of the files below one root, in one SQLite file; a damaged or locked one is unused."""

    def __init__(self, dataset: Dataset, folder: Path | None) -> None:
        self.root: Path | None = getattr(dataset, "root", None)
        self.path: Path | None = None
        large = len(dataset.examples) >= MIN_IMAGES
        # With a `source`, keys need not be the names of files.
        if getattr(dataset, "source", None) is None and self.root is not None and folder and large:
            name = hashlib.sha256(str(Path(self.root).resolve()).encode()).hexdigest()[:24]
            self.path = folder / f"{name}.sqlite"

    def stamps(self, keys: Iterable[str]) -> dict[str, str]:
        """Size and time of change of the images that are files."""
        if self.root is None or self.path is None:
            return {}
        stamps = {}
        for key in keys:
            try:
                status = os.stat(os.path.join(self.root, key))  # noqa: PTH116, PTH118 - a million
            except OSError:
                continue
            stamps[key] = f"{status.st_size}-{status.st_mtime_ns}"
        return stamps

    def load(self, stamps: dict[str, str]) -> dict[str, Facts]:
        """The facts that still hold."""
        if self.path is None or not self.path.exists():
            return {}
        try:
            with closing(sqlite3.connect(self.path)) as base:
                rows = base.execute("SELECT * FROM facts").fetchall()
        except sqlite3.Error:
            return {}
        return {
            key: Facts(digest, width, height, spread)
            for key, stamp, digest, width, height, spread in rows
            if stamps.get(key) == stamp
        }

    def save(self, found: dict[str, Facts], stamps: dict[str, str]) -> None:
        """Adds what was found; a cache that cannot be written costs time later, nothing else."""
        if self.path is None or not found:
            return
        rows = [
            (key, stamps[key], fact.digest, fact.width, fact.height, fact.spread)
            for key, fact in found.items()
        ]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path)) as base, base:
                base.execute(_TABLE)
                base.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?, ?, ?)", rows)
        except (OSError, sqlite3.Error):
            return
