"""Tables with a row per image: CSV and Parquet manifests, saved Hugging Face data sets.

A manifest has the columns `path` (relative to the manifest's folder) and `label` (class name);
`client`, `domain`, `split` (train, val or test) and `caption` may be there; others are passed over.

What Hugging Face `datasets` saved with `save_to_disk` are Arrow files and JSON: no script of the
data set is run. Image bytes are decoded here, with the same formats and limits as any other image.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

from pfedmma_deploy.data.class_names import class_name, label_folders
from pfedmma_deploy.data.images import ImageSource
from pfedmma_deploy.data.readers.base import SPLITS, Listing, Reader, Scanner, read_text
from pfedmma_deploy.errors import DataError, ImageError, nearest
from pfedmma_deploy.types import Example, Skipped

COLUMNS: Final = ("path", "label", "client", "domain", "split", "caption")
_NEEDED: Final = ("path", "label")
_SUFFIXES: Final = (".csv", ".parquet")
_TAKEN: Final = ("client", "domain", "caption")
_LABELS: Final = ("label", "labels", "fine_label", "class", "category")


class _Row(NamedTuple):
    """One image; texts, empty where the manifest says nothing."""

    path: str
    label: str
    client: str
    domain: str
    split: str
    caption: str


def _find_manifest(path: Path) -> Path | None:
    """A .csv or .parquet file, or the manifest.csv or manifest.parquet of a folder."""
    if path.is_file():
        return path if path.suffix.lower() in _SUFFIXES else None
    places = (path / f"manifest{suffix}" for suffix in _SUFFIXES)
    return next((place for place in places if place.is_file()), None)


def _read_manifest(file: Path, scan: Scanner) -> Listing:
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
        root=file.parent, layout="manifest", class_names=names, examples=examples, skipped=skipped
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


def _find_hub(path: Path) -> Path | None:
    """`path`, where it is one saved part or a dictionary of parts."""
    one = (path / "dataset_info.json").is_file() and (path / "state.json").is_file()
    return path if one or (path / "dataset_dict.json").is_file() else None


def _read_hub(root: Path, scan: Scanner) -> Listing:
    """The rows of all parts; keys are `<part>-<row>`.

    The first image column and the column of class labels count; columns named client, domain and
    caption are taken over.

    Raises:
        DataError: `datasets` is not installed, files that it cannot read, no column of images or
            labels, or a part of another name than train, validation or test.
    """
    parts = _load(root)
    first = next(iter(parts.values()))
    image, label = _columns(root, first.features)
    names, number = _class_names(parts, label)
    examples = []
    for part, table in parts.items():
        for row, values in enumerate(_rows(table, label)):
            if values[label] is None or (isinstance(values[label], int) and values[label] < 0):
                raise DataError(f"{root}: row {row} of '{part}' has no label; remove such rows")
            rest = (None if values.get(c) is None else str(values[c]) for c in _TAKEN)
            examples.append(
                Example(f"{part}-{row:07}", number[values[label]], SPLITS[part.lower()], *rest)
            )
    columns = {part: table.data.column(image) for part, table in parts.items()}

    def source(key: str) -> ImageSource:
        part, _, row = key.rpartition("-")
        value = columns[part][int(row)].as_py()
        if value and value.get("bytes"):
            content: bytes = value["bytes"]
            return content
        if value and value.get("path"):
            return Path(value["path"])
        raise ImageError("the row has no image")

    return Listing(
        root=root,
        layout="hub",
        class_names=tuple(map(class_name, names)),
        examples=sorted(examples, key=lambda example: example.key),
        source=source,
    )


def _load(root: Path) -> dict[str, Any]:
    """Parts by name, with images as bytes."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{root} was saved by Hugging Face datasets, which reading it needs:"
            " pip install 'pfedmma-deploy[data]'"
        ) from error
    try:
        loaded = datasets.load_from_disk(str(root))
    except Exception as error:  # its list of exception types is open-ended
        raise DataError(f"{root} cannot be read by Hugging Face datasets: {error}") from error
    parts = loaded if isinstance(loaded, Mapping) else {_part_of(root): loaded}
    unknown = [f"a part '{part}'" for part in parts if part.lower() not in SPLITS]
    if unknown or not parts:
        found = (unknown or ["no part at all"])[0]
        raise DataError(f"{root} has {found}; expected train, validation (or val) and test")
    return {part: _rows_in_place(table) for part, table in parts.items()}


def _rows_in_place(table: Any) -> Any:
    """The table with row numbers that are those of its file, whatever selection was stored."""
    # There is no public question; without it, every table would be copied.
    return table if table._indices is None else table.flatten_indices()


def _part_of(root: Path) -> str:
    """The part that a table says it is; a table that is none of the known ones trains."""
    try:
        part = json.loads((root / "state.json").read_text(encoding="utf-8")).get("_split")
    except (OSError, ValueError, AttributeError):
        part = None
    return part if isinstance(part, str) and part.lower() in SPLITS else "train"


def _columns(root: Path, features: Mapping[str, Any]) -> tuple[str, str]:
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    image = next((name for name, kind in kinds.items() if kind == "Image"), None)
    labelled = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    # Of CIFAR-100's two columns of labels, the fine one is meant.
    chosen = [name for name in _LABELS if name in labelled] + labelled
    chosen += [name for name in _LABELS if name in kinds]
    if image is None or not chosen:
        found = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise DataError(
            f"{root} has no column of {'images' if image is None else 'labels'}; found {found};"
            " expected an Image column and a ClassLabel column"
        )
    return image, chosen[0]


def _class_names(parts: Mapping[str, Any], label: str) -> tuple[list[str], dict[Any, int]]:
    """Class names in order, and the label of each value of the column."""
    feature = next(iter(parts.values())).features[label]
    if type(feature).__name__ == "ClassLabel":
        return list(feature.names), {number: number for number in range(len(feature.names))}
    values = {value for table in parts.values() for value in table.unique(label)} - {None}
    order = sorted(values, key=str)
    return [str(value) for value in order], {value: n for n, value in enumerate(order)}


def _rows(table: Any, label: str) -> Iterator[dict[str, Any]]:
    names = [label, *(name for name in _TAKEN if name in table.column_names)]
    columns = [table.data.column(name).to_pylist() for name in names]
    for values in zip(*columns, strict=True):
        yield dict(zip(names, values, strict=True))


READERS: Final = (Reader(_find_manifest, _read_manifest), Reader(_find_hub, _read_hub))
