"""Public data sets that this package knows by name: what they hold and how people get them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

from pfedmma_deploy.config import read_table
from pfedmma_deploy.errors import DataError, UsageError, nearest
from pfedmma_deploy.types import Split

ROOT_VARIABLE: Final = "PFEDMMA_DATA"
"""Environment variable: the folder below which data sets are looked for by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownDataset:
    """One public data set (`assets/datasets.toml`)."""

    name: str
    title: str
    folders: tuple[str, ...]
    """Names below the data root, the usual one first."""
    expects: tuple[str, ...]
    """What has to lie in that folder."""
    classes: int
    images: int
    licence: str
    homepage: str
    image_folder: str = ""
    """Where the paths of the split file begin."""
    domains: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Classes that the few-shot literature calls otherwise, by their names in the archive."""
    published: Mapping[str, Split] | None = None
    """Its authors' own lists of images with the split of each; empty where all images train, None
    where only the split file tells the parts."""
    split: str | None = None
    """Where the split file, or ImageNet's list of class names, is kept by CoOp's authors."""
    torchvision: str | None = None
    """The class of `torchvision.datasets` that can download the images."""
    download_bytes: int | None = None

    @property
    def split_file(self) -> str:
        """The file among `expects` that `split` is the place of; empty where there is none."""
        return next((name for name in self.expects if name.startswith("split_zhou_")), "")

    @property
    def where(self) -> str:
        """Where people get it, as the end of a sentence."""
        texts = [self.homepage]
        if self.split:
            texts.append(f"{self.split_file or self.expects[-1]} from {self.split}")
        return ", ".join(texts)


@cache
def known_datasets() -> Mapping[str, KnownDataset]:
    """Every known data set by name, in the order of `pfedmma data list`."""
    known = {}
    for name, table in read_table("datasets.toml").items():
        values: dict[str, Any] = {}
        for key, value in table.items():
            values[key] = tuple(value) if isinstance(value, list) else value
        known[name] = KnownDataset(name=name, **values)
    return known


def data_root(root: str | Path | None = None) -> Path | None:
    """The folder of data sets: `root`, or else what `PFEDMMA_DATA` names; None without either."""
    chosen = root or os.environ.get(ROOT_VARIABLE)
    return Path(chosen).expanduser() if chosen else None


def find_known(known: KnownDataset, root: str | Path | None = None) -> Path | None:
    """The folder of a known data set below the data root, or None where it has none there."""
    base = data_root(root)
    if base is None:
        return None
    start = known.expects[0].split("/")[0]
    places = [base / folder for folder in known.folders if (base / folder).is_dir()]
    # One that is not complete is taken if there is no better one: the reader says what it lacks.
    complete = [place for place in places if (place / start).exists()]
    return next(iter(complete or places), None)


def absent(known: KnownDataset, root: str | Path | None = None) -> DataError:
    """The error for a known data set that is not there: what was expected where, how to get it."""
    base = data_root(root)
    place = f"{base} has no folder {' or '.join(known.folders)}" if base else "no data root is set"
    fetch = f"; the images also with `pfedmma data fetch {known.name}`" if known.torchvision else ""
    return DataError(
        f"data set {known.name} ({known.title}) is not there: {place}. Expected in that folder:"
        f" {', '.join(known.expects)}. Get it from {known.where}{fetch}. Then set {ROOT_VARIABLE}"
        f" to the folder that holds it, or name the data set's own folder"
    )


def describe_known(known: KnownDataset, root: str | Path | None = None) -> dict[str, Any]:
    """A known data set as a JSON-able record; `folder` is None where it is not there."""
    folder = find_known(known, root)
    same = ("name", "title", "classes", "images", "licence", "homepage")
    return {
        **{name: getattr(known, name) for name in same},
        "domains": list(known.domains),
        "split_url": known.split,
        "expects": list(known.expects),
        "fetchable": known.torchvision is not None,
        "folder": str(folder) if folder else None,
    }


def find_fetchable(name: str) -> KnownDataset:
    """The known data set of that name. Raises `UsageError` where it cannot be downloaded so."""
    known = known_datasets().get(name)
    if known is not None and known.torchvision is not None:
        return known
    able = ", ".join(each.name for each in known_datasets().values() if each.torchvision)
    if known is None:
        raise UsageError(
            f"there is no known data set '{name}'{nearest(name, known_datasets())}; those that can"
            f" be fetched are {able}"
        )
    raise UsageError(
        f"{known.title} cannot be fetched by a program; get it from {known.where}. Those that"
        f" can be fetched are {able}"
    )


def fetch(known: KnownDataset, module: Any, base: Path) -> Path:
    """Download a data set below `base`; what is there already is not fetched again.

    Args:
        known: a result of `find_fetchable`.
        module: `torchvision.datasets`: this layer has no torch, also not by way of it.
        base: the data root.

    Returns:
        The folder of the data set.

    Raises:
        DataError: the download failed, or left something else than was expected.
    """
    assert known.torchvision is not None
    try:
        base.mkdir(parents=True, exist_ok=True)
        getattr(module, known.torchvision)(str(base), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{known.name} could not be downloaded into {base}: {error}. Try again, which goes on"
            f" where it stopped, or get it by hand from {known.where}"
        ) from error
    place = find_known(known, base)
    if place is None:
        raise DataError(
            f"the download of {known.name} left none of the folders {', '.join(known.folders)} in"
            f" {base}; this version of torchvision puts it elsewhere. Name that folder with --data"
        )
    return place
