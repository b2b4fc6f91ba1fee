"""Public data sets that this package knows by name: what they hold and where people get them."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from pfedmma_deploy.errors import DataError

__all__ = ["ROOT_VARIABLE", "Known", "absent", "data_root", "find_known", "known_datasets"]

ROOT_VARIABLE: Final = "PFEDMMA_DATA"
"""Environment variable: the folder below which data sets are looked for by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """One public data set (`assets/datasets.toml`)."""

    name: str
    title: str
    layout: str
    """Which reader: split, aircraft, imagenet, cifar, lists or domains."""
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
def known_datasets() -> Mapping[str, Known]:
    """Every known data set by name, in the order of `pfedmma data list`."""
    text = files("pfedmma_deploy").joinpath("assets", "datasets.toml").read_text(encoding="utf-8")
    known = {}
    for name, table in tomllib.loads(text).items():
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in table.items()
        }
        known[name] = Known(name=name, **values)
    return MappingProxyType(known)


def data_root(root: str | Path | None = None) -> Path | None:
    """The folder of data sets: `root`, or else what `PFEDMMA_DATA` names; None without either."""
    chosen = root or os.environ.get(ROOT_VARIABLE)
    return Path(chosen).expanduser() if chosen else None


def find_known(known: Known, root: str | Path | None = None) -> Path | None:
    """The folder of a known data set below the data root, or None where it has none there."""
    base = data_root(root)
    if base is None:
        return None
    places = [place for place in (base / folder for folder in known.folders) if place.is_dir()]
    start = known.expects[0].split("/")[0]
    return next((place for place in places if (place / start).exists()), next(iter(places), None))


def absent(known: Known, root: str | Path | None = None) -> DataError:
    """The error for a known data set that is not there: what was expected where, how to get it."""
    base = data_root(root)
    place = f"{base} has no folder {' or '.join(known.folders)}" if base else "no data root is set"
    fetch = f"; the images also with `pfedmma data fetch {known.name}`" if known.torchvision else ""
    return DataError(
        f"data set {known.name} ({known.title}) is not there: {place}. Expected in that folder:"
        f" {', '.join(known.expects)}. Get it from {known.where}{fetch}. Then set {ROOT_VARIABLE}"
        f" to the folder that holds it, or name the data set's own folder"
    )
