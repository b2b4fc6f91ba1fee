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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

from pfedmma_deploy.data.class_names import class_name
from pfedmma_deploy.data.images import ImageSource
from pfedmma_deploy.data.readers.base import (
    SPLITS,
    Reader,
    Scanner,
    StoredDataset,
    label_folders,
    read_text,
)
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
    for suffix in _SUFFIXES:
        if (path / f"manifest{suffix}").is_file():
            return path / f"manifest{suffix}"
    return None


def _read_manifest(file: Path, scan: Scanner) -> StoredDataset:
    """The images of a manifest, in the class order of classes.txt beside it, else sorted."""
    rows = _read_csv(file) if file.suffix.lower() == ".csv" else _read_parquet(file)
    table: dict[str, _Row] = {}
    for number, row in rows:
        empty = [name for name in _NEEDED if not getattr(row, name)]
        if empty:
            raise DataError(f"{file}, row {number}: {empty[0]} is empty; every image needs one")
        if row.split and row.split.lower() not in SPLITS:
            raise DataError(
                f"{file}, row {number}: split '{row.split}'; expected train, val or test"
            )
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
        # The row goes when its example is made: of a million, one of the two is enough.
        row = table.pop(key)
        split = SPLITS[row.split.lower() or "train"]
        rest = (row.client or None, row.domain or None, row.caption or None)
        examples.append(Example(key, labels[row.label], split, *rest))
    if not examples:
        raise DataError(
            f"{file} names {len(skipped):,} images and none of them is there; paths are relative to"
            f" {file.parent}"
        )
    return StoredDataset(
        root=file.parent,
        layout="manifest",
        class_names=names,
        examples=tuple(examples),
        skipped=tuple(skipped),
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
                yield reader.line_num, _row(None if c is None else row[c] for c in columns)
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
    columns = [values.get(name) or repeat(None) for name in COLUMNS]
    # Path and label exist in every table, so the shortest column is as long as the table.
    for number, row in enumerate(zip(*columns, strict=False), start=1):
        yield number, _row(row)


def _row(values: Iterable[Any]) -> _Row:
    # Labels, clients and domains are few texts in many rows: each is kept once.
    return _Row(*("" if value is None else sys.intern(str(value).strip()) for value in values))


def _find_hub(path: Path) -> Path | None:
    """`path`, where it is one saved split or a dictionary of splits."""
    one = (path / "dataset_info.json").is_file() and (path / "state.json").is_file()
    return path if one or (path / "dataset_dict.json").is_file() else None


def _read_hub(root: Path, scan: Scanner) -> StoredDataset:
    """The rows of all splits; keys are `<split>-<row>`.

    The first image column and the column of class labels count; columns named client, domain and
    caption are taken over.
    """
    tables = _load(root)
    features = next(iter(tables.values())).features
    image, label = _choose_columns(root, features)
    names, labels = _class_names(tables.values(), features[label], label)
    examples = []
    images = {}
    for split, table in tables.items():
        images[split] = table.data.column(image)
        names_taken = [name for name in _TAKEN if name in table.column_names]
        columns = [table.data.column(name).to_pylist() for name in (label, *names_taken)]
        for row, (value, *rest) in enumerate(zip(*columns, strict=True)):
            # A class label of -1 is how `datasets` says that there is none.
            if value is None or (isinstance(value, int) and value < 0):
                raise DataError(f"{root}: row {row} of '{split}' has no label; remove such rows")
            taken = {n: str(v) for n, v in zip(names_taken, rest, strict=True) if v is not None}
            key = f"{split}-{row:07}"
            examples.append(Example(key, labels[value], SPLITS[split.lower()], **taken))

    def source(key: str) -> ImageSource:
        split, _, row = key.rpartition("-")
        value = images[split][int(row)].as_py()
        if value and value.get("bytes"):
            content: bytes = value["bytes"]
            return content
        if value and value.get("path"):
            return Path(value["path"])
        raise ImageError("the row has no image")

    return StoredDataset(
        root=root,
        layout="hub",
        class_names=tuple(map(class_name, names)),
        examples=tuple(sorted(examples, key=lambda example: example.key)),
        source=source,
    )


def _load(root: Path) -> dict[str, Any]:
    """Tables by split, with images as bytes."""
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
    splits = loaded if isinstance(loaded, Mapping) else {_split_of(root): loaded}
    unknown = [f"a part '{split}'" for split in splits if split.lower() not in SPLITS]
    if unknown or not splits:
        found = (unknown or ["no part at all"])[0]
        raise DataError(f"{root} has {found}; expected train, validation (or val) and test")
    tables = {}
    for split, table in splits.items():
        # Rows are found by their numbers in the file, so a selection of rows has to be carried
        # out. There is no public question whether there is one; without it, all would be copied.
        tables[split] = table if table._indices is None else table.flatten_indices()
    return tables


def _split_of(root: Path) -> str:
    """The split that a table says it is; a table that is none of the known ones trains."""
    try:
        split = json.loads((root / "state.json").read_text(encoding="utf-8")).get("_split")
    except (OSError, ValueError, AttributeError):
        split = None
    return split if isinstance(split, str) and split.lower() in SPLITS else "train"


def _choose_columns(root: Path, features: Mapping[str, Any]) -> tuple[str, str]:
    """The column of images and that of labels."""
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    labelled = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    # Of CIFAR-100's two columns of labels, the fine one is meant.
    labels = [name for name in _LABELS if name in labelled] + labelled
    labels += [name for name in _LABELS if name in kinds]
    if not images or not labels:
        found = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise DataError(
            f"{root} has no column of {'labels' if images else 'images'}; found {found};"
            " expected an Image column and a ClassLabel column"
        )
    return images[0], labels[0]


def _class_names(
    tables: Iterable[Any], feature: Any, label: str
) -> tuple[list[str], dict[Any, int]]:
    """Class names in order, and the label of each value of the column."""
    if type(feature).__name__ == "ClassLabel":
        return list(feature.names), {number: number for number in range(len(feature.names))}
    values: set[Any] = set()
    for table in tables:
        values.update(table.unique(label))
    order = sorted(values - {None}, key=str)
    return [str(value) for value in order], {value: n for n, value in enumerate(order)}


READERS: Final = (Reader(_find_manifest, _read_manifest), Reader(_find_hub, _read_hub))
