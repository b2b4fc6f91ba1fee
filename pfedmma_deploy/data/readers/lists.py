"""Domains with list files, as DomainNet has them: `<domain>_train.txt` and `<domain>_test.txt`.

A line is `<domain>/<class>/<image> <class number>`. The lists lie beside the domain folders, or in
splits/ (Dassl).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pfedmma_deploy.data.readers.base import (
    Listing,
    Scanner,
    keep_present,
    order_classes,
    read_lines,
)
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Example, Split

__all__ = ["find", "read"]

_PARTS: Final[dict[str, Split]] = {"_train.txt": "train", "_val.txt": "val", "_test.txt": "test"}


def find(path: Path) -> Path | None:
    """`path`, where a training list has a folder of the same domain."""
    return path if any(part == "train" for _, part, _ in _find_lists(path)) else None


def read(root: Path, scan: Scanner) -> Listing:
    """The images that the lists name; the name of a class is that of its folder.

    Raises:
        DataError: a line of another form, an image in two lists, a class number with two folders,
            or no image where the lists say.
    """
    rows: list[tuple[str, int, str, Split]] = []
    lists = _find_lists(root)
    for domain, split, file in lists:
        for number, line in read_lines(file):
            path, _, label = line.rpartition(" ")
            parts = path.split("/")
            if len(parts) != 3 or parts[0] != domain or not label.isdecimal():
                raise DataError(
                    f"{file}, line {number}: '{line}' is not `{domain}/<class>/<image> <class"
                    " number>`"
                )
            rows.append((path, int(label), domain, split))
    file = lists[0][2]
    pairs = ((number, path.split("/")[1]) for path, number, _, _ in rows)
    names, labels = order_classes(pairs, file)
    examples: dict[str, Example] = {}
    for path, number, domain, split in rows:
        if path in examples:
            raise DataError(
                f"{root}: {path} is in the lists twice ({examples[path].split} and {split});"
                " expected every image once"
            )
        examples[path] = Example(path, labels[number], split, domain=domain)
    where = f"the domain folders in {root}"
    present, skipped = keep_present(examples, scan(root), file, where)
    return Listing(root=root, form="lists", class_names=names, examples=present, skipped=skipped)


def _find_lists(root: Path) -> list[tuple[str, Split, Path]]:
    """(domain, part, file) of every list that has a domain folder, ascending."""
    return [
        (file.name.removesuffix(ending), split, file)
        for base in (root, root / "splits")
        for ending, split in _PARTS.items()
        for file in sorted(base.glob(f"*{ending}"))
        if (root / file.name.removesuffix(ending)).is_dir()
    ]
