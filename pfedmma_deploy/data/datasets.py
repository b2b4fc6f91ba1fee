"""Data sets by name or place on disk, as examples in a fixed class order."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, compress
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from pfedmma_deploy.data.checks import Problem
from pfedmma_deploy.data.images import ImageSource, decode_image, verify_image
from pfedmma_deploy.data.index import Index
from pfedmma_deploy.data.known import absent, find_known, known_datasets
from pfedmma_deploy.data.readers.base import Listing
from pfedmma_deploy.data.readers.registry import READERS
from pfedmma_deploy.data.samples import SAMPLE_NAMES, load_sample
from pfedmma_deploy.errors import DataError, ImageError, nearest
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.types import Dataset, Example, Skipped

__all__ = ["FolderDataset", "load_dataset"]

_BATCH: Final = 64


@dataclass(eq=False, slots=True)
class FolderDataset:
    """Images on disk, opened when asked for."""

    name: str
    root: Path
    form: str
    """How they lie there: the layout that was recognised."""
    class_names: tuple[str, ...]
    examples: tuple[Example, ...]
    """In ascending order of their keys. Images of a form without splits are all "train"."""
    skipped: tuple[Skipped, ...]
    problems: tuple[Problem, ...]
    """What reading the folder found; `checks.check_dataset` reports it."""
    source: Callable[[str], ImageSource] | None = None
    """Where the image of a key is; None means the file of that path below `root`."""

    def open_image(self, example: Example) -> Image.Image:
        """Decoded RGB pixels, EXIF orientation applied. Raises `ImageError`."""
        return decode_image(self.source(example.key) if self.source else self.root / example.key)


def load_dataset(
    name_or_path: str | Path,
    *,
    root: str | Path | None = None,
    verify: bool = True,
    cache: bool = True,
    progress: Progress | None = None,
) -> Dataset:
    """An embedded sample, a known data set by name, or whatever a path holds.

    A path may be a folder in one of the layouts of `readers`, which are told apart by what lies in
    it, or the CSV or Parquet file of a manifest. The order of classes is that of the data set's own
    lists, else of the folder's classes.txt, else the sorted folder names.

    Args:
        name_or_path: a sample (`cifar10-sample`), a name of `known.known_datasets`, or a path. A
            path that exists wins over a known name.
        root: where known data sets are looked for; None takes the variable `PFEDMMA_DATA`.
        verify: read every image to its end and leave out the broken ones, with path and reason in
            `skipped`. Large folders remember what was read (`index`).
        cache: False neither uses nor keeps what is remembered about large folders.
        progress: told of the images that are verified.

    Raises:
        DataError: no such sample, name or path, no images, an unclear layout, or lists that do not
            match the images. What `checks.check_dataset` reports is not raised here.
    """
    if isinstance(name_or_path, str) and name_or_path in SAMPLE_NAMES:
        return load_sample(name_or_path)
    path = _locate(name_or_path, root)
    progress = progress or Silent()
    index = Index(enabled=cache)
    try:
        found = _read(path, index)
    except OSError as error:
        raise DataError(f"data {error.filename or path}: {error.strerror or error}") from error
    if isinstance(found, Listing):
        return _open_listing(path, found, index, verify, progress)
    return found


def _read(path: Path, index: Index) -> Listing | Dataset:
    """What the first reader finds that knows the layout; the last one knows any folder."""
    for reader in READERS:
        place = reader.find(path)
        if place is not None:
            return reader.read(place, index.scan)
    raise AssertionError("the last reader takes every path")


def _locate(name_or_path: str | Path, root: str | Path | None) -> Path:
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    known = known_datasets().get(str(name_or_path))
    if known is None:
        names = [*SAMPLE_NAMES, *known_datasets()]
        raise DataError(
            f"there is no folder {str(name_or_path)!r} and no embedded sample or data set of that"
            f" name{nearest(str(name_or_path), names) or '.'} The samples are"
            f" {', '.join(SAMPLE_NAMES)}, and `pfedmma data list` shows the data sets"
        )
    place = find_known(known, root)
    if place is None:
        raise absent(known, root)
    return place


def _open_listing(
    path: Path, found: Listing, index: Index, verify: bool, progress: Progress
) -> FolderDataset:
    broken = _find_broken(found, index, progress) if verify else {}
    examples = tuple(example for example in found.examples if example.key not in broken)
    skipped = [*found.skipped, *(Skipped(key, reason) for key, reason in broken.items())]
    return FolderDataset(
        name=path.resolve().name,
        root=found.root,
        form=found.form,
        class_names=found.class_names,
        examples=examples,
        skipped=tuple(sorted(skipped, key=lambda skip: skip.path)),
        problems=found.find_problems(examples),
        source=found.source,
    )


def _find_broken(found: Listing, index: Index, progress: Progress) -> dict[str, str]:
    """Reason by key of the images that cannot be read to their end."""
    keys = [example.key for example in found.examples]
    if found.source is not None:
        return _read_all(keys, found.source, progress)
    root = found.root
    marks = index.marks(root, keys)
    known = np.zeros(len(keys), bool) if marks is None else index.is_good(root, marks)
    broken = _read_all([*compress(keys, ~known)], lambda key: root / key, progress)
    if marks is not None and not known.all():
        index.remember_good(root, marks[[key not in broken for key in keys]])
    return broken


def _read_all(
    keys: Sequence[str], source: Callable[[str], ImageSource], progress: Progress
) -> dict[str, str]:
    """Batches, because one future per image would cost more than the image."""

    def check(batch: Sequence[str]) -> list[tuple[str, str | None]]:
        return [(key, _reason(source, key)) for key in batch]

    batches = [keys[start : start + _BATCH] for start in range(0, len(keys), _BATCH)]
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        done = chain.from_iterable(pool.map(check, batches))
        told = progress.track(done, "images read", len(keys)) if keys else ()
        return {key: reason for key, reason in told if reason is not None}


def _reason(source: Callable[[str], ImageSource], key: str) -> str | None:
    try:
        verify_image(source(key))
    except ImageError as error:
        return str(error)
    return None
