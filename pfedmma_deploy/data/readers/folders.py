"""Folders of images: by class, by part, by client, and the data sets with one folder per domain.

PACS, Office-Home and Office-Caltech10, and DomainNet without its lists, lie as
`<domain>/<class>/*.jpg`, which without knowing them would be clients; they are told by the names of
their domains. The forms are in `layout.LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pfedmma_deploy.data.checks import Problem, find_problem
from pfedmma_deploy.data.classes import label_folders
from pfedmma_deploy.data.folders import Scan
from pfedmma_deploy.data.known import known_datasets
from pfedmma_deploy.data.layout import Layout, read_layout
from pfedmma_deploy.data.readers.base import Listing, Scanner
from pfedmma_deploy.types import Example

__all__ = ["find", "read"]

# Where the domain folders lie in copies of PACS: Dassl's and the authors'.
_INSIDE: Final = ("", "images", "kfold")


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
    layout = read_layout(found, root)
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
        form="domains" if by_domain else layout.form,
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
