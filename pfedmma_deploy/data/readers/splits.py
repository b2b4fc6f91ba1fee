"""Data sets of the few-shot literature with a `split_zhou_*.json` of CoOp.

The file is one object, `{"train": [...], "val": [...], "test": [...]}`, of rows `[path, class
number, class name]`; paths begin in the data set's image folder (CoOp, arXiv 2109.01134,
DATASETS.md). The number decides the class order, so that base and novel classes are the published
ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args

from pfedmma_deploy.data.known import Known, known_datasets
from pfedmma_deploy.data.readers.base import (
    Listing,
    Scanner,
    keep_present,
    order_classes,
    read_json,
)
from pfedmma_deploy.data.readers.names import fix_name
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Example, Split

__all__ = ["find", "read"]

_PATTERN: Final = "split_zhou_*.json"
_FORM: Final = '{"train": [[path, class number, class name], ...], "val": [...], "test": [...]}'


def find(path: Path) -> Path | None:
    """The split file of a data set's folder.

    Raises:
        DataError: several split files.
    """
    found = sorted(path.glob(_PATTERN)) if path.is_dir() else []
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise DataError(
            f"data folder {path}: several split files ({names}); expected one: move the others away"
        )
    return found[0] if found else None


def read(file: Path, scan: Scanner) -> Listing:
    """The images that the split file names, in the parts that it puts them in.

    Raises:
        DataError: a split file of an unknown data set or of another form, one image in two places,
            or no image where it should be.
    """
    known = _known(file)
    root = file.parent
    rows = list(_rows(file))
    labels_of = order_classes(((n, fix_name(known.name, name)) for _, _, n, name in rows), file)
    names, labels = labels_of
    prefix = f"{known.image_folder}/" if known.image_folder else ""
    examples: dict[str, Example] = {}
    for split, path, number, _ in rows:
        key = prefix + path
        if key in examples:
            raise DataError(
                f"{file} names {path} twice ({examples[key].split} and {split}); expected every"
                " image once. Get the file again from where it came from"
            )
        examples[key] = Example(key, labels[number], split)
    expected = " and ".join(known.expects[:-1])
    present, skipped = keep_present(examples, scan(root), file, f"{expected} in {root}")
    return Listing(root=root, form="split", class_names=names, examples=present, skipped=skipped)


def _known(file: Path) -> Known:
    sets = [known for known in known_datasets().values() if known.split_file]
    for known in sets:
        if known.split_file == file.name:
            return known
    raise DataError(
        f"{file}: no split file of a known data set; expected one of"
        f" {', '.join(known.split_file for known in sets)}"
    )


def _rows(file: Path) -> Iterator[tuple[Split, str, int, str]]:
    table = read_json(file)
    if not isinstance(table, dict) or not {"train", "test"} <= table.keys():
        raise DataError(f"{file}: expected {_FORM}, found another kind of JSON")
    for split in get_args(Split):
        rows = table.get(split, [])
        if not isinstance(rows, list):
            raise DataError(f"{file}: '{split}' is no list; expected {_FORM}")
        for row in rows:
            yield _row(file, split, row)


def _row(file: Path, split: Split, row: Any) -> tuple[Split, str, int, str]:
    match row:
        case [str(path), int(number), str(name)] if path and number >= 0 and name.strip():
            return split, path.lstrip("/"), number, name
    raise DataError(f"{file}: row {row!r:.80} of '{split}' is not [path, class number, class name]")
