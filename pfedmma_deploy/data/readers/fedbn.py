"""Domains with pickled lists, as FedBN shares Office-Caltech10 and its ten classes of DomainNet.

Beside the domain folders lie `<domain>_train.pkl` and `<domain>_test.pkl`, each a pair: the paths
and the class names of the images (arXiv 2102.07623; pFedMMA's domain experiments use them). They
are read without unpickling.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pfedmma_deploy.data.classes import class_name
from pfedmma_deploy.data.readers.base import Listing, Scanner, keep_present
from pfedmma_deploy.data.readers.pickles import read_pickle, texts_of
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Example, Split

__all__ = ["find", "read"]

_PARTS: Final[dict[str, Split]] = {"_train.pkl": "train", "_test.pkl": "test"}


def find(path: Path) -> Path | None:
    """`path`, where a pickled training list has a folder of the same domain."""
    return path if any(part == "train" for _, part, _ in _find_lists(path)) else None


def read(root: Path, scan: Scanner) -> Listing:
    """The images that the lists name, with the sorted class names.

    Raises:
        DataError: a list that cannot be read safely or is no pair, an image in two lists, or no
            image where the lists say.
    """
    lists = _find_lists(root)
    rows = [
        (path, label, domain, split, file)
        for domain, split, file in lists
        for path, label in _pairs(file)
    ]
    names = sorted({label for _, label, _, _, _ in rows})
    labels = {name: number for number, name in enumerate(names)}
    examples: dict[str, Example] = {}
    for path, label, domain, split, file in rows:
        # Paths begin above the data set's folder, whatever that is called here.
        before, found, after = path.replace("\\", "/").rpartition(f"{domain}/")
        if not found or (before and not before.endswith("/")):
            raise DataError(f"{file}: '{path}' is not in the folder of the domain {domain}")
        key = f"{domain}/{after}"
        if key in examples:
            raise DataError(f"{file}: {key} is listed twice; expected every image once")
        examples[key] = Example(key, labels[label], split, domain=domain)
    where = f"the domain folders in {root}"
    present, skipped = keep_present(examples, scan(root), lists[0][2], where)
    return Listing(
        root=root,
        form="fedbn",
        class_names=tuple(map(class_name, names)),
        examples=present,
        skipped=skipped,
    )


def _pairs(file: Path) -> list[tuple[str, str]]:
    """(path, class) of every image in a list."""
    found = read_pickle(file)
    try:
        paths, labels = texts_of(found)
        pairs = list(zip(paths, labels, strict=True))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{file} is no pair of paths and class names ({error}); remove the .pkl lists to read"
            " the folders without them"
        ) from error
    if not all(isinstance(text, str) for pair in pairs for text in pair):
        raise DataError(f"{file} holds something else than texts; remove the .pkl lists")
    return pairs


def _find_lists(root: Path) -> list[tuple[str, Split, Path]]:
    """(domain, part, file) of every list that has a domain folder, ascending."""
    return [
        (file.name.removesuffix(ending), split, file)
        for ending, split in _PARTS.items()
        for file in sorted(root.glob(f"*{ending}"))
        if (root / file.name.removesuffix(ending)).is_dir()
    ]
