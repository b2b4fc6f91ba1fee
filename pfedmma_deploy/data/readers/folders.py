"""Folders of images: by class, by split, by client, and the data sets with one folder per domain.

PACS, Office-Home and Office-Caltech10, and DomainNet without its lists, lie as
`<domain>/<class>/*.jpg`, which without knowing them would be clients; they are told by the names of
their domains.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pfedmma_deploy.data.catalog import known_datasets
from pfedmma_deploy.data.class_names import label_folders
from pfedmma_deploy.data.dataset_checks import find_problem
from pfedmma_deploy.data.readers.base import SPLITS, Listing, Reader, Scanner
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

Form = Literal["classes", "splits", "clients"]

_FORM_PATHS: Final[dict[str, str]] = {
    "classes": "<class>/image",
    "splits": "train/<class>/image",
    "clients": "<client>/<class>/image",
}


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


def find(path: Path) -> Path:
    """`path`, or the folder of domains in it."""
    places = (path / inside for inside in _INSIDE)
    return next((place for place in places if _is_by_domain(place)), path)


def read(root: Path, scan: Scanner) -> Listing:
    """Every image below `root`, in the form that its folders show.

    Raises:
        DataError: no folder, no image, an unclear layout, or a classes.txt that does not match.
    """
    found = scan(root)
    layout = _read_layout(found, root)
    names, labels = label_folders(root, (name for _, name in layout.class_folders))
    by_domain = layout.form == "clients" and _is_by_domain(root)
    examples = []
    for key, place in zip(found.images, layout.places, strict=True):
        client, domain = (None, place.client) if by_domain else (place.client, None)
        examples.append(
            Example(key, labels[place.class_folder], place.split or "train", client, domain)
        )

    def problems(readable: Sequence[Example]) -> tuple[Problem, ...]:
        return _find_problems(found, layout, readable, by_domain=by_domain)

    return Listing(
        root=root,
        layout="domains" if by_domain else layout.form,
        class_names=names,
        examples=examples,
        skipped=list(found.skipped),
        find_problems=problems,
    )


def _is_by_domain(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    try:
        found = {_plain(entry.name) for entry in folder.iterdir() if entry.is_dir()}
    except OSError:  # listing it says what is wrong
        return False
    sets = (set(known.domains) for known in known_datasets().values() if known.domains)
    return any(domains <= found for domains in sets)


def _plain(name: str) -> str:
    """`Real World` and `real_world` are one domain."""
    return name.lower().replace(" ", "_").replace("-", "_")


def _find_problems(
    found: Scan, layout: Layout, examples: Sequence[Example], *, by_domain: bool
) -> tuple[Problem, ...]:
    folders_used = {example.key.rpartition("/")[0] for example in examples}
    names_used = {name for folder, name in layout.class_folders if folder in folders_used}
    empty, elsewhere = list[str](), list[str]()
    for folder, name in layout.class_folders:
        if folder not in folders_used:
            (elsewhere if name in names_used else empty).append(folder)
    clients_used = {example.domain if by_domain else example.client for example in examples}
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


def _read_layout(found: Scan, root: Path) -> Layout:
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


READERS: Final = (Reader(find, read),)
