"""Data sets by name or folder, as examples in a fixed class order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from pfedmma_deploy.config import nearest
from pfedmma_deploy.data.checks import Problem, find_problem
from pfedmma_deploy.data.classes import label_folders
from pfedmma_deploy.data.folders import Scan, scan_folder
from pfedmma_deploy.data.images import decode_image, verify_image
from pfedmma_deploy.data.layout import Form, Layout, read_layout
from pfedmma_deploy.data.samples import SAMPLE_NAMES, load_sample
from pfedmma_deploy.errors import DataError, ImageError
from pfedmma_deploy.types import Dataset, Example, Skipped

__all__ = ["FolderDataset", "load_dataset"]

_BATCH: Final = 64

Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""


@dataclass(eq=False, slots=True)
class FolderDataset:
    """Images of a folder on disk, opened when asked for."""

    name: str
    root: Path
    form: Form
    class_names: tuple[str, ...]
    examples: tuple[Example, ...]
    """In ascending order of their keys. Images of a form without splits are all "train"."""
    skipped: tuple[Skipped, ...]
    problems: tuple[Problem, ...]
    """What reading the folder found; `checks.check_dataset` reports it."""

    def open_image(self, example: Example) -> Image.Image:
        """Decoded RGB pixels, EXIF orientation applied. Raises `ImageError`."""
        return decode_image(self.root / example.key)


def load_dataset(
    name_or_dir: str | Path,
    *,
    verify: bool = True,
    progress: Progress | None = None,
) -> Dataset:
    """An embedded sample by its name, or a folder of images in one of the forms of `LAYOUTS`.

    The order of classes is that of the folder's classes.txt, else the sorted folder names
    (`classes.label_folders` has the rules). Files that are no images are
    counted, hidden ones passed over.

    Args:
        name_or_dir: `cifar10-sample`, `domains-sample`, or a path.
        verify: read every image to its end and leave out the broken ones, with path and reason in
            `skipped`; without it only their names are read, which suits millions of images.
        progress: called while images are verified.

    Raises:
        DataError: no such sample or folder, no images, an unclear layout, or a classes.txt that
            does not match the folders. What `checks.check_dataset` reports is not raised here.
    """
    if isinstance(name_or_dir, str) and name_or_dir in SAMPLE_NAMES:
        return load_sample(name_or_dir)
    root = Path(name_or_dir)
    if not root.exists():
        raise DataError(
            f"there is no folder {str(name_or_dir)!r} and no embedded sample of that name;"
            f" the samples are {', '.join(SAMPLE_NAMES)}{nearest(str(name_or_dir), SAMPLE_NAMES)}"
        )
    found = scan_folder(root)
    layout = read_layout(found, root)
    names, labels = label_folders(root, (name for _, name in layout.class_folders))
    broken = _find_broken(root, found.images, progress) if verify else {}
    examples = tuple(
        Example(key, labels[place.class_folder], place.split or "train", place.client)
        for key, place in zip(found.images, layout.places, strict=True)
        if key not in broken
    )
    skipped = [*found.skipped, *(Skipped(key, reason) for key, reason in broken.items())]
    return FolderDataset(
        name=root.resolve().name,
        root=root,
        form=layout.form,
        class_names=names,
        examples=examples,
        skipped=tuple(sorted(skipped, key=lambda skip: skip.path)),
        problems=_find_problems(found, layout, examples),
    )


def _find_broken(root: Path, keys: Sequence[str], progress: Progress | None) -> dict[str, str]:
    """Reason by key. Batches, because one future per image would cost more than the image."""

    def check(batch: Sequence[str]) -> Iterator[tuple[str, str]]:
        for key in batch:
            try:
                verify_image(root / key)
            except ImageError as error:
                yield key, str(error)

    broken: dict[str, str] = {}
    batches = [keys[start : start + _BATCH] for start in range(0, len(keys), _BATCH)]
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        for number, result in enumerate(pool.map(lambda batch: [*check(batch)], batches)):
            broken.update(result)
            if progress:
                progress(min((number + 1) * _BATCH, len(keys)), len(keys))
    return broken


def _find_problems(found: Scan, layout: Layout, examples: Sequence[Example]) -> tuple[Problem, ...]:
    folders_used = {example.key.rpartition("/")[0] for example in examples}
    names_used = {name for folder, name in layout.class_folders if folder in folders_used}
    empty, elsewhere = list[str](), list[str]()
    for folder, name in layout.class_folders:
        if folder not in folders_used:
            (elsewhere if name in names_used else empty).append(folder)
    clients_used = {example.client for example in examples}
    no_images = [client for client in layout.client_folders if client not in clients_used]
    one_client = layout.client_folders if len(layout.client_folders) == 1 else ()
    others = [f"{count} {suffix}" for suffix, count in sorted(found.other_files.items())]
    return (
        *find_problem("empty-class", empty),
        *find_problem("empty-client", no_images),
        *find_problem("empty-class-folder", elsewhere),
        *find_problem("one-client-folder", one_client),
        *find_problem("other-files", others, found.other_files.total()),
    )
