"""Data by domain with lists of images beside the domain folders, as texts or as pickles.

DomainNet has `<domain>_train.txt` and `<domain>_test.txt`, with lines of `<domain>/<class>/<image>
<class number>`; the lists lie beside the domain folders, or in splits/ (Dassl).

FedBN shares Office-Caltech10 and ten classes of DomainNet with `<domain>_train.pkl` and
`<domain>_test.pkl`, each a pair: the paths and the class names of the images (arXiv 2102.07623;
pFedMMA's domain experiments use them).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pfedmma_deploy.data.class_names import class_name
from pfedmma_deploy.data.readers.base import (
    Listing,
    Scanner,
    keep_present,
    order_classes,
    read_lines,
)
from pfedmma_deploy.data.readers.pickles import read_pickle, texts_of
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Example, Split


class _List(NamedTuple):
    """A list that has a domain folder."""

    domain: str
    split: Split
    file: Path


def find_texts(path: Path) -> Path | None:
    """`path`, where a training list has a folder of the same domain."""
    return path if any(one.split == "train" for one in _find_lists(path, ".txt")) else None


def read_texts(root: Path, scan: Scanner) -> Listing:
    """The images that the lists name; the name of a class is that of its folder.

    Raises:
        DataError: a line of another form, an image in two lists, a class number with two folders,
            or no image where the lists say.
    """
    lists = _find_lists(root, ".txt")
    rows: list[tuple[str, int, _List]] = []
    for one in lists:
        for number, line in read_lines(one.file):
            path, _, label = line.rpartition(" ")
            parts = path.split("/")
            if len(parts) != 3 or parts[0] != one.domain or not label.isdecimal():
                raise DataError(
                    f"{one.file}, line {number}: '{line}' is not `{one.domain}/<class>/<image>"
                    " <class number>`"
                )
            rows.append((path, int(label), one))
    pairs = ((number, path.split("/")[1]) for path, number, _ in rows)
    names, labels = order_classes(pairs, lists[0].file)
    examples: dict[str, Example] = {}
    for path, number, one in rows:
        if path in examples:
            raise DataError(
                f"{root}: {path} is in the lists twice ({examples[path].split} and {one.split});"
                " expected every image once"
            )
        examples[path] = Example(path, labels[number], one.split, domain=one.domain)
    return _listing(root, scan, "lists", names, examples, lists)


def find_pickles(path: Path) -> Path | None:
    """`path`, where a pickled training list has a folder of the same domain."""
    return path if any(one.split == "train" for one in _find_lists(path, ".pkl")) else None


def read_pickles(root: Path, scan: Scanner) -> Listing:
    """The images that the lists name, with the sorted class names.

    Raises:
        DataError: a list that cannot be read safely or is no pair, an image in two lists, or no
            image where the lists say.
    """
    lists = _find_lists(root, ".pkl")
    rows: list[tuple[str, str, _List]] = []
    for one in lists:
        rows += [(path, label, one) for path, label in _read_pairs(one.file)]
    names = sorted({label for _, label, _ in rows})
    labels = {name: number for number, name in enumerate(names)}
    examples: dict[str, Example] = {}
    for path, label, one in rows:
        # Paths begin above the data set's folder, whatever that is called here.
        before, found, after = path.replace("\\", "/").rpartition(f"{one.domain}/")
        if not found or (before and not before.endswith("/")):
            raise DataError(f"{one.file}: '{path}' is not in the folder of the domain {one.domain}")
        key = f"{one.domain}/{after}"
        if key in examples:
            raise DataError(f"{one.file}: {key} is listed twice; expected every image once")
        examples[key] = Example(key, labels[label], one.split, domain=one.domain)
    return _listing(root, scan, "fedbn", tuple(map(class_name, names)), examples, lists)


def _find_lists(root: Path, suffix: str) -> list[_List]:
    """Every list that has a domain folder, ascending, training lists first."""
    found = []
    splits: tuple[Split, ...] = ("train", "val", "test")
    for base in (root, root / "splits"):
        for split in splits:
            ending = f"_{split}{suffix}"
            for file in sorted(base.glob(f"*{ending}")):
                domain = file.name.removesuffix(ending)
                if (root / domain).is_dir():
                    found.append(_List(domain, split, file))
    return found


def _listing(
    root: Path,
    scan: Scanner,
    layout: str,
    names: tuple[str, ...],
    examples: dict[str, Example],
    lists: list[_List],
) -> Listing:
    where = f"the domain folders in {root}"
    present, skipped = keep_present(examples, scan(root), lists[0].file, where)
    return Listing(root=root, layout=layout, class_names=names, examples=present, skipped=skipped)


def _read_pairs(file: Path) -> list[tuple[str, str]]:
    """(path, class) of every image in a list."""
    found = read_pickle(file)
    try:
        paths, labels = texts_of(found)
        pairs = list(zip(paths, labels, strict=True))
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(
            f"{file} is no pair of paths and class names ({error}); remove the .pkl lists to read"
            " the folders without them"
        ) from error
    if not all(isinstance(text, str) for pair in pairs for text in pair):
        raise DataError(f"{file} holds something else than texts; remove the .pkl lists")
    return pairs
