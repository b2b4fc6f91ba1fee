"""A manifest: a CSV or Parquet table with one row per image.

Columns: `path` (relative to the manifest's folder) and `label` (class name) are needed; `client`,
`domain`, `split` (train, val or test) and `caption` may be there; others are passed over.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pfedmma_deploy.config import nearest
from pfedmma_deploy.data.classes import label_folders
from pfedmma_deploy.data.layout import SPLITS
from pfedmma_deploy.data.readers.base import Listing, Scanner, read_text
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Example, Skipped

__all__ = ["COLUMNS", "find", "read"]

COLUMNS: Final = ("path", "label", "client", "domain", "split", "caption")
_NEEDED: Final = ("path", "label")
_SUFFIXES: Final = (".csv", ".parquet")


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
    header, rows = _read_csv(file) if file.suffix.lower() == ".csv" else _read_parquet(file)
    _check_header(file, header)
    seen: dict[str, int] = {}
    table: list[tuple[str, str, dict[str, str]]] = []
    for number, row in rows:
        values: dict[str, str] = {n: (row[n] or "").strip() for n in COLUMNS if n in row}
        empty = [name for name in _NEEDED if not values[name]]
        if empty:
            raise DataError(f"{file}, row {number}: {empty[0]} is empty; every image needs one")
        key = PurePosixPath(values["path"].replace("\\", "/")).as_posix()
        if key in seen:
            raise DataError(
                f"{file}, row {number}: {key} stands in row {seen[key]} as well; expected every"
                " image once"
            )
        seen[key] = number
        if values.get("split") and values["split"].lower() not in SPLITS:
            raise DataError(
                f"{file}, row {number}: split '{values['split']}'; expected train, val or test"
            )
        table.append((key, values["label"], values))
    names, labels = label_folders(file.parent, (label for _, label, _ in table))
    examples, skipped = list[Example](), list[Skipped]()
    for key, label, values in sorted(table, key=lambda row: row[0]):
        if not (file.parent / key).is_file():
            skipped.append(Skipped(key, f"{file.name} names it, but there is no such file"))
            continue
        split = SPLITS[values.get("split", "").lower() or "train"]
        rest = (values.get(name) or None for name in ("client", "domain", "caption"))
        examples.append(Example(key, labels[label], split, *rest))
    if not examples:
        raise DataError(
            f"{file} names {len(table):,} images and none of them is there; paths are relative to"
            f" {file.parent}"
        )
    return Listing(
        root=file.parent, form="manifest", class_names=names, examples=examples, skipped=skipped
    )


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


def _read_csv(file: Path) -> tuple[list[str], Iterator[tuple[int, dict[str, Any]]]]:
    reader = csv.reader(io.StringIO(read_text(file), newline=""), strict=True)

    def rows(header: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        try:
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise DataError(
                        f"{file}, line {reader.line_num}: {len(row)} values for {len(header)}"
                        " columns; texts with a comma need quotation marks"
                    )
                yield reader.line_num, dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise DataError(f"{file}, line {reader.line_num}: not CSV: {error}") from error

    header = [name.strip() for name in next(reader, [])]
    return header, rows(header)


def _read_parquet(file: Path) -> tuple[list[str], Iterator[tuple[int, dict[str, Any]]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(
            f"{file} is a Parquet table, which needs pyarrow: pip install 'pfedmma-deploy[data]'"
        ) from error
    try:
        header = parquet.read_schema(file).names
        columns = [name for name in COLUMNS if name in header]
        values = parquet.read_table(file, columns=columns).to_pydict()
    except (ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read as a Parquet table: {error}") from error
    texts = {name: [v if v is None else str(v) for v in of] for name, of in values.items()}
    rows = zip(*texts.values(), strict=True)
    named = (dict(zip(texts, row, strict=True)) for row in rows)
    return header, enumerate(named, start=1)
