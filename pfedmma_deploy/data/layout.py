"""Which class, client and split each image of a folder belongs to, told from its path."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pfedmma_deploy.data.folders import Scan
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Split

__all__ = ["LAYOUTS", "SPLITS", "Form", "Layout", "Place", "read_layout"]

LAYOUTS: Final = (
    "expected one of\n"
    "  <class>/*.jpg\n"
    "  train/<class>/*.jpg, with val/ and test/ beside it if there are such\n"
    "  <client>/<class>/*.jpg\n"
    "  <client>/train/<class>/*.jpg, with val/ and test/ beside it if there are such"
)

Form = Literal["classes", "splits", "clients"]

_FORM_PATHS: Final[dict[str, str]] = {
    "classes": "<class>/image",
    "splits": "train/<class>/image",
    "clients": "<client>/<class>/image",
}
SPLITS: Final[dict[str, Split]] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""The part of a data set by what people call it, in lower case."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an image stands in a layout."""

    form: Form
    client: str | None
    split: Split | None
    class_folder: str


@dataclass(frozen=True, slots=True)
class Layout:
    """The form of a whole folder, and each image's place in it."""

    form: Form
    places: tuple[Place, ...]
    """One per image of the scan, in its order."""
    class_folders: tuple[tuple[str, str], ...]
    """(path, name) of every class folder, with images or without; ascending."""
    client_folders: tuple[str, ...]
    """Every client folder, with images or without; ascending."""


def read_layout(found: Scan, root: Path) -> Layout:
    """Tells which of the four forms in `LAYOUTS` a folder has; clients may mix the last two.

    A folder called train, val (or valid, validation) or test is a split where class folders lie in
    it, and a class where images lie directly in it.

    Raises:
        DataError: no image at all, or images in places of different forms; both are named.
    """
    if not found.images:
        raise DataError(f"data folder {root}: no images found{_others(found)}; {LAYOUTS}")
    # One look at each folder, not at each image: there may be millions.
    folders = [key.rpartition("/")[0] for key in found.images]
    place_of = {folder: _place(folder) for folder in dict.fromkeys(folders)}
    known = {folder: place for folder, place in place_of.items() if place is not None}
    kinds = {f: _FORM_PATHS[p.form] if p else _misfit(f) for f, p in place_of.items()}
    if len(set(kinds.values())) > 1 or len(known) < len(place_of):
        first: dict[str, str] = {}
        for key, folder in zip(found.images, folders, strict=True):
            first.setdefault(kinds[folder], key)
        listed = "".join(f"\n  {key}  ({kind})" for kind, key in first.items())
        raise DataError(f"data folder {root}: the layout is unclear; found{listed}\n{LAYOUTS}")
    _refuse_bare_splits(root, known.values())
    form = next(iter(known.values())).form
    places = tuple(known[folder] for folder in folders)
    clients = tuple(folder for folder in found.folders if "/" not in folder)
    return Layout(form, places, _class_folders(found, form), clients if form == "clients" else ())


def _place(folder: str) -> Place | None:
    """What the path of a folder makes of the images directly in it."""
    match folder.split("/") if folder else []:
        case [name]:
            return Place("classes", None, None, name)
        case [split, name] if _is_split(split):
            return Place("splits", None, SPLITS[split.lower()], name)
        case [client, name]:
            return Place("clients", client, None, name)
        case [client, split, name] if _is_split(split) and not _is_split(client):
            return Place("clients", client, SPLITS[split.lower()], name)
    return None


def _is_split(folder: str) -> bool:
    return folder.lower() in SPLITS


def _misfit(folder: str) -> str:
    return f"{folder.count('/') + 1} folders deep" if folder else "in no folder"


def _others(found: Scan) -> str:
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(found.other_files.items()))
    broken = ", ".join(f"{skipped.path} ({skipped.reason})" for skipped in found.skipped[:3])
    return "".join(f", only {what}" for what in (kinds, broken) if what)


def _refuse_bare_splits(root: Path, places: Iterable[Place]) -> None:
    """Images directly in train/ are a class called "train" only where other classes stand by."""
    with_splits, without = set[str | None](), dict[str | None, set[str]]()
    for place in places:
        if place.split is None:
            without.setdefault(place.client, set()).add(place.class_folder)
        else:
            with_splits.add(place.client)
    for client, names in without.items():
        where = root / client if client else root
        if all(map(_is_split, names)):
            raise DataError(
                f"data folder {where}: images lie directly in {', '.join(sorted(names))}, without"
                f" class folders; {LAYOUTS}"
            )
        if client in with_splits:
            raise DataError(
                f"data folder {where}: the layout is unclear; found class folders both directly"
                f" in it ({min(names)}) and in its split folders; {LAYOUTS}"
            )


def _class_folders(found: Scan, form: Form) -> tuple[tuple[str, str], ...]:
    with_images = {key.rpartition("/")[0] for key in found.images}
    folders = []
    for folder in found.folders:
        place = _place(folder)
        if place is None or place.form != form:
            continue
        if folder in with_images or not _is_split(place.class_folder):
            folders.append((folder, place.class_folder))
    return tuple(folders)
