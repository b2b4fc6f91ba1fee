"""Folders of images: by class, by split, by client, and the data sets with one folder per domain.

PACS, Office-Home and Office-Caltech10, and DomainNet without its lists, lie as
`<domain>/<class>/*.jpg`, which without knowing them would be clients; they are told by the names of
their domains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

from pfedmma_deploy.data.catalog import known_datasets
from pfedmma_deploy.data.dataset_checks import find_problem
from pfedmma_deploy.data.readers.base import SPLITS, Reader, Scanner, StoredDataset, label_folders
from pfedmma_deploy.data.scan import Scan
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Example, Problem, Split

# Where the domain folders lie in copies of PACS: Dassl's and the authors'.
_INSIDE: Final = ("", "images", "kfold")
LAYOUTS: Final = (
    "expected one of\n"
    "  <class>/*.jpg\n"
    "  train/<class>/*.jpg, with val/ and test/ beside it if there are such\n"
    "  <client>/<class>/*.jpg\n"
    "  <client>/train/<class>/*.jpg, with val/ and test/ beside it if there are such"
)
FolderLayout = Literal["classes", "splits", "clients"]
_PATHS: Final[dict[FolderLayout, str]] = {
    "classes": "<class>/image",
    "splits": "train/<class>/image",
    "clients": "<client>/<class>/image",
}


class Place(NamedTuple):
    """What the path of a class folder says of the images directly in it."""

    layout: FolderLayout
    client: str | None
    split: Split | None
    class_folder: str


def find(path: Path) -> Path:
    """`path`, or the folder of domains in it."""
    for inside in _INSIDE:
        if _is_by_domain(path / inside):
            return path / inside
    return path


def read(root: Path, scan: Scanner) -> StoredDataset:
    """Every image below `root`, in the layout that its folders show.

    Raises:
        DataError: no folder, no image, an unclear layout, or a classes.txt that does not match.
    """
    found = scan(root)
    places = _read_places(found, root)
    layout = next(iter(places.values())).layout
    class_folders: dict[str, str] = {}
    for folder in found.folders:
        place = _place(folder)
        # An empty folder called val is a split without classes, not a class without images.
        is_class = folder in places or (place and not _is_split(place.class_folder))
        if place and place.layout == layout and is_class:
            class_folders[folder] = place.class_folder
    names, labels = label_folders(root, class_folders.values())
    by_domain = layout == "clients" and _is_by_domain(root)
    examples = []
    for key in found.images:
        of_image = places[key.rpartition("/")[0]]
        client, domain = of_image.client, None
        if by_domain:
            client, domain = None, of_image.client
        label, split = labels[of_image.class_folder], of_image.split or "train"
        examples.append(Example(key, label, split, client, domain))
    clients = [folder for folder in found.folders if "/" not in folder and layout == "clients"]

    def problems(readable: Sequence[Example]) -> Iterator[Problem]:
        """Folders without an image that can be read, and files of another kind."""
        used = {example.key.rpartition("/")[0] for example in readable}
        names_used = {class_folders[folder] for folder in used}
        clients_used = {folder.partition("/")[0] for folder in used}
        unused = [folder for folder in class_folders if folder not in used]
        elsewhere = [folder for folder in unused if class_folders[folder] in names_used]
        empty = [folder for folder in unused if class_folders[folder] not in names_used]
        yield from find_problem("empty-class", empty)
        without = [client for client in clients if client not in clients_used]
        yield from find_problem("empty-client", without)
        yield from find_problem("empty-class-folder", elsewhere)
        yield from find_problem("one-client-folder", clients if len(clients) == 1 else [])
        yield from find_problem("other-files", _count_others(found), found.other_files.total())

    return StoredDataset(
        root=root,
        layout="domains" if by_domain else layout,
        class_names=names,
        examples=tuple(examples),
        skipped=tuple(found.skipped),
        find_problems=problems,
    )


def _is_by_domain(folder: Path) -> bool:
    """Whether all domains of a known data set are there; `Real World` counts as `real_world`."""
    try:
        names = [entry.name.lower() for entry in folder.iterdir() if entry.is_dir()]
    except OSError:  # absent, a file or unreadable: listing it says which
        return False
    found = {name.replace(" ", "_").replace("-", "_") for name in names}
    sets = [set(known.domains) for known in known_datasets().values() if known.domains]
    return any(domains <= found for domains in sets)


def _read_places(found: Scan, root: Path) -> dict[str, Place]:
    """Which of the four layouts in `LAYOUTS` it is, by folder; clients may mix the last two.

    A folder called train, val (or valid, validation) or test is a split where class folders lie in
    it, and a class where images lie directly in it.
    """
    if not found.images:
        others = ", ".join(_count_others(found))
        broken = ", ".join(f"{skipped.path} ({skipped.reason})" for skipped in found.skipped[:3])
        instead = "".join(f", only {what}" for what in (others, broken) if what)
        raise DataError(f"data folder {root}: no images found{instead}; {LAYOUTS}")
    places: dict[str, Place] = {}
    # One look at each folder, not at each image: there may be millions.
    first: dict[str, str] = {}
    for key in found.images:
        first.setdefault(key.rpartition("/")[0], key)
    kinds: dict[str, str] = {}
    for folder, key in first.items():
        place = _place(folder)
        if place is not None:
            places[folder] = place
            kinds.setdefault(_PATHS[place.layout], key)
        else:
            depth = f"{folder.count('/') + 1} folders deep" if folder else "in no folder"
            kinds.setdefault(depth, key)
    if len(kinds) > 1 or len(places) < len(first):
        listed = "".join(f"\n  {key}  ({kind})" for kind, key in kinds.items())
        raise DataError(f"data folder {root}: the layout is unclear; found{listed}\n{LAYOUTS}")
    _refuse_bare_splits(root, places)
    return places


def _place(folder: str) -> Place | None:
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


def _count_others(found: Scan) -> list[str]:
    """Files that are no images, by suffix."""
    return [f"{count} {suffix}" for suffix, count in sorted(found.other_files.items())]


def _is_split(folder: str) -> bool:
    return folder.lower() in SPLITS


def _refuse_bare_splits(root: Path, places: Mapping[str, Place]) -> None:
    """Images directly in train/ are a class called "train" only where other classes stand by."""
    with_splits: set[str | None] = set()
    without: dict[str | None, set[str]] = {}
    for place in places.values():
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


READERS: Final = (Reader(find, read),)
