"""Data sets by name or place on disk, as examples in a fixed class order."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from PIL import Image

from pfedmma_deploy.data.catalog import absent, find_known, known_datasets
from pfedmma_deploy.data.class_names import class_key
from pfedmma_deploy.data.image_stats import find_broken
from pfedmma_deploy.data.readers import cifar, few_shot, folders, published_lists, saved_tables
from pfedmma_deploy.data.registry import REGISTERED, dataset_plugins, open_plugin
from pfedmma_deploy.data.samples import SAMPLE_NAMES, load_sample
from pfedmma_deploy.data.scan import scan
from pfedmma_deploy.errors import DataError, nearest
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.types import Dataset, Example, Skipped

READERS = (
    *saved_tables.READERS,
    *cifar.READERS,
    *few_shot.READERS,
    *published_lists.READERS,
    *folders.READERS,
)
"""In the order in which they are tried; the last takes any folder."""


def load_dataset(
    name_or_path: str | Path | Dataset,
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
        name_or_path: a sample (`cifar10-sample`), a data set that this program registered
            (`registry.register_dataset`), a path, a name of `catalog.known_datasets`, or one that a
            plug-in adds. A path that exists wins over what follows it here. A data set that is
            open already is returned as it is.
        root: where known data sets are looked for; None takes the variable `PFEDMMA_DATA`.
        verify: read every image to its end and leave out the broken ones, with path and reason in
            `skipped`. What was read of large folders is remembered (`image_stats`).
        cache: False neither uses nor keeps what is remembered about large folders.
        progress: told of the images that are verified.

    Raises:
        DataError: no such sample, name or path, no images, an unclear layout, or lists that do not
            match the images. What `dataset_checks.check_dataset` reports is not raised here.
    """
    if isinstance(name_or_path, Dataset):
        return name_or_path
    if isinstance(name_or_path, str) and name_or_path in SAMPLE_NAMES:
        return load_sample(name_or_path)
    if str(name_or_path) in REGISTERED:
        return REGISTERED[str(name_or_path)]
    path = _locate(name_or_path, root)
    if isinstance(path, Dataset):
        return path
    for reader in READERS:
        try:
            place = reader.find(path)
            if place is None:
                continue
            found = reader.read(place, functools.partial(scan, cache=cache))
        except OSError as error:
            raise DataError(f"data {error.filename or path}: {error.strerror or error}") from error
        break
    skipped = list(found.skipped)
    # Once now, with a list of what is wrong, instead of an error in the middle of the training.
    if verify:
        broken = find_broken(found, cache=cache, progress=progress or Silent())
        found.examples = tuple(each for each in found.examples if each.key not in broken)
        skipped += [Skipped(key, reason) for key, reason in broken.items()]
    found.skipped = tuple(sorted(skipped, key=lambda skip: skip.path))
    found.problems = tuple(found.find_problems(found.examples))
    del found.find_problems  # which may hold the names of all files
    found.name = found.name or path.resolve().name
    found.has_published_order = reader.keeps_order
    return found


def _locate(name_or_path: str | Path, root: str | Path | None) -> Path | Dataset:
    """Where the data are, or the data set of a plug-in."""
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    known = known_datasets().get(str(name_or_path))
    if known is None:
        added = open_plugin(str(name_or_path))
        if added is not None:
            return added
        names = [*SAMPLE_NAMES, *known_datasets(), *REGISTERED, *dataset_plugins().found]
        raise DataError(
            f"there is no folder {str(name_or_path)!r} and no embedded sample or data set of that"
            f" name{nearest(str(name_or_path), names) or '.'} The samples are"
            f" {', '.join(SAMPLE_NAMES)}, and `pfedmma data list` shows the data sets"
        )
    place = find_known(known, root)
    if place is None:
        raise absent(known, root)
    return place


class SiteDataset(Dataset):
    """One client's images under the class names of its federation, in the federation's order.

    "Cat" at a site is the federation's "cat" (`class_names.class_key`).
    """

    layout = "site"

    def __init__(self, own: Dataset, class_names: Sequence[str], client: str) -> None:
        """Raises `DataError` naming the classes that the federation does not have."""
        label_of = {class_key(name): label for label, name in enumerate(class_names)}
        unknown = [name for name in own.class_names if class_key(name) not in label_of]
        if unknown:
            raise DataError(
                f"data {own.name} has classes that the federation does not have:"
                f" {', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}. Its classes are"
                f" {', '.join(class_names)}: rename or move the folders that differ, or ask the"
                " operator to add the names"
            )
        label = [label_of[class_key(name)] for name in own.class_names]
        self.own = own
        self.name, self.root = own.name, own.root
        self.skipped, self.problems = own.skipped, own.problems
        self.class_names = tuple(class_names)
        self.examples = tuple(
            replace(example, label=label[example.label], client=client) for example in own.examples
        )

    def open_image(self, example: Example) -> Image.Image:
        """See `Dataset`."""
        return self.own.open_image(example)


class NoImages(Dataset):
    """Class names alone: what the server of a federation of real sites knows of their data."""

    layout = "sites"
    name = "the sites' data"
    examples = ()

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)

    def open_image(self, example: Example) -> Image.Image:
        """There are none."""
        raise AssertionError(f"the server was asked for {example.key}")


class ConcatDataset(Dataset):
    """`first` as it is, followed by `second`, whose new class names come after the known ones.

    "Cat" beside "cat" is the same class (`class_names.class_key`). Keys of the second are prefixed,
    so that none is taken for one of the first.
    """

    layout = "concatenated"

    def __init__(self, first: Dataset, second: Dataset) -> None:
        self.name = f"{first.name} and {second.name}"
        known = {class_key(name): label for label, name in enumerate(first.class_names)}
        new = [name for name in second.class_names if class_key(name) not in known]
        known.update({class_key(name): len(known) + i for i, name in enumerate(new)})
        self.class_names = (*first.class_names, *new)
        self.label = [known[class_key(name)] for name in second.class_names]
        """Label here of each label of the second data set."""
        self.added: dict[str, Example] = {}
        """The examples of the second data set by their keys there."""
        self._first, self._second = first, second
        self._original: dict[str, Example] = {}
        for example in second.examples:
            # Both may have an image cat/1.jpg, and keys name cached activations as well.
            key, label = f"client:{example.key}", self.label[example.label]
            self.added[example.key] = replace(example, key=key, label=label, client=None)
            self._original[key] = example
        self.examples = (*first.examples, *self.added.values())
        self.skipped = (*first.skipped, *second.skipped)

    def open_image(self, example: Example) -> Image.Image:
        """Decoded RGB pixels from whichever data set holds the example."""
        if example.key in self._original:
            return self._second.open_image(self._original[example.key])
        return self._first.open_image(example)


def summarize(dataset: Dataset) -> dict[str, Any]:
    """What a data set holds in figures, as JSON-able values; nothing is opened.

    Returns:
        `name`, `layout`, `root`, `images`, `parts` (images of each), `classes` (name and images, in
        class order), `domains` and `clients` (images of each part, by name), `captions` (images
        with one), `skipped` (path and reason) and `problems` that reading the layout found.
    """
    labels: Counter[int] = Counter()
    parts: Counter[str] = Counter()
    captions = 0
    domains: dict[str, Counter[str]] = {}
    clients: dict[str, Counter[str]] = {}
    for example in dataset.examples:
        labels[example.label] += 1
        parts[example.split] += 1
        captions += example.caption is not None
        for name, table in ((example.domain, domains), (example.client, clients)):
            if name is not None:
                table.setdefault(name, Counter())[example.split] += 1
    classes = []
    for label, name in enumerate(dataset.class_names):
        classes.append({"name": name, "images": labels[label]})
    return {
        "name": dataset.name,
        "layout": dataset.layout,
        "root": None if dataset.root is None else str(dataset.root),
        "images": len(dataset.examples),
        "parts": {part: parts[part] for part in ("train", "val", "test") if part in parts},
        "classes": classes,
        "domains": dict(sorted(domains.items())),
        "clients": dict(sorted(clients.items())),
        "captions": captions,
        "skipped": [asdict(skip) for skip in dataset.skipped],
        "problems": [str(problem) for problem in dataset.problems],
    }
