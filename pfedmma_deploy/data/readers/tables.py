"""A manifest: a CSV or Parquet table with one row per image.

Columns: `path` (relative to the manifest's folder) and `label` (class name) are needed; `client`,
`domain`, `split` (train, val or test) and `caption` may be there; others are passed over.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from pfedmma_deploy.data.classes import label_folders
from pfedmma_deploy.data.layout import SPLITS
from pfedmma_deploy.data.readers.base import Listing, Scanner, read_text
from pfedmma_deploy.errors import DataError, nearest
from pfedmma_deploy.types import Example, Skipped

__all__ = ["COLUMNS", "find", "read"]

COLUMNS: Final = ("path", "label", "client", "domain", "split", "caption")
_NEEDED: Final = ("path", "label")
_SUFFIXES: Final = (".csv", ".parquet")


class _Row(NamedTuple):
    """One image; texts, empty where the manifest says nothing."""

    path: str
    label: str
    client: str
    domain: str
    split: str
    caption: str


def find(path: Path) -> Path | None:
    """A .csv or .parquet file, or the manifest.csv or manifest.parquet of a folder."""
    if path.is_file():
        return path if path.suffix.lower() in _SUFFIXES else None
    places = (path / f"manifest{suffix}" for suffix in _SUFFIXES)
    return next((place for place in places if place.is_file()), None)


def read(file: Path, scan: Scanner) -> Listing:
    """The images of a manifest, in the class order of classes.txt beside it, else sorted.

    Raises:
        DataError: a column that is missing or misspelt, a row without path or label, a split of
            another name, one path twice, no image that exists; pyarrow missing for Parquet.
    """
    rows = _read_csv(file) if file.suffix.lower() == ".csv" else _read_parquet(file)
    table: dict[str, _Row] = {}
    for number, row in rows:
        _check_row(file, number, row)
        key = PurePosixPath(row.path.replace("\\", "/")).as_posix()
        if key in table:
            raise DataError(
                f"{file}, row {number}: {key} stands in an earlier row as well; expected every"
                " image once"
            )
        table[key] = row
    names, labels = label_folders(file.parent, {row.label for row in table.values()})
    examples, skipped = list[Example](), list[Skipped]()
    for key in sorted(table):
        if not (file.parent / key).is_file():
            skipped.append(Skipped(key, f"{file.name} names it, but there is no such file"))
            continue
        _, label, client, domain, split, caption = table.pop(key)
        part = SPLITS[split.lower() or "train"]
        rest = (client or None, domain or None, caption or None)
        examples.append(Example(key, labels[label], part, *rest))
    if not examples:
        raise DataError(
            f"{file} names {len(skipped):,} images and none of them is there; paths are relative to"
            f" {file.parent}"
        )
    return Listing(
        root=file.parent, form="manifest", class_names=names, examples=examples, skipped=skipped
    )


def _check_row(file: Path, number: int, row: _Row) -> None:
    for name in _NEEDED:
        if not getattr(row, name):
            raise DataError(f"{file}, row {number}: {name} is empty; every image needs one")
    if row.split and row.split.lower() not in SPLITS:
        raise DataError(f"{file}, row {number}: split '{row.split}'; expected train, val or test")


def _check_header(file: Path, header: Sequence[str]) -> None:
    for name in _NEEDED:
        if name not in header:
            raise DataError(
                f"{file} has no column '{name}'; found {', '.join(header) or 'nothing'}; expected"
                f" {' and '.join(_NEEDED)}, and any of {', '.join(COLUMNS[2:])}"
            )
    for name in header:
        # A misspelt column would silently not count.
        hint = "" if name in COLUMNS else nearest(name, set(COLUMNS) - set(header))
        if hint:
            raise DataError(f"{file} has a column '{name}'{hint}; rename or remove it")


def _read_csv(file: Path) -> Iterator[tuple[int, _Row]]:
    """(line, row) of the images; values without the spaces around them, "" where there is none."""
    reader = csv.reader(io.StringIO(read_text(file), newline=""), strict=True)
    header = [name.strip() for name in next(reader, [])]
    _check_header(file, header)
    columns = [header.index(name) if name in header else None for name in COLUMNS]
    try:
        for row in reader:
            if row and len(row) != len(header):
                raise DataError(
                    f"{file}, line {reader.line_num}: {len(row)} values for {len(header)} columns;"
                    " texts with a comma need quotation marks"
                )
            if row:
                values = ("" if c is None else sys.intern(row[c].strip()) for c in columns)
                yield reader.line_num, _Row(*values)
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: not CSV: {error}") from error


def _read_parquet(file: Path) -> Iterator[tuple[int, _Row]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(
            f"{file} is a Parquet table, which needs pyarrow: pip install 'pfedmma-deploy[data]'"
        ) from error
    try:
        header = parquet.read_schema(file).names
        _check_header(file, header)
        found = [name for name in COLUMNS if name in header]
        values = parquet.read_table(file, columns=found).to_pydict()
    except (ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read as a Parquet table: {error}") from error
    columns = (values.get(name) or repeat("") for name in COLUMNS)
    # Path and label exist in every table, so the shortest column is as long as the table.
    for number, row in enumerate(zip(*columns, strict=False), start=1):
        yield number, _Row(*("" if v is None else sys.intern(str(v).strip()) for v in row))
