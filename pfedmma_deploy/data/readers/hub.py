"""Data sets that Hugging Face `datasets` saved with `save_to_disk`.

Arrow files and JSON: no script of the data set is run. Image bytes are decoded here, with the same
formats and limits as any other image.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pfedmma_deploy.data.classes import class_name
from pfedmma_deploy.data.images import ImageSource
from pfedmma_deploy.data.layout import SPLITS
from pfedmma_deploy.data.readers.base import Listing, Scanner
from pfedmma_deploy.errors import DataError, ImageError
from pfedmma_deploy.types import Example, Split

__all__ = ["find", "read"]

_COLUMNS: Final = ("client", "domain", "caption")
_LABELS: Final = ("label", "labels", "fine_label", "class", "category")


def find(path: Path) -> Path | None:
    """`path`, where it is one saved part or a dictionary of parts."""
    one = (path / "dataset_info.json").is_file() and (path / "state.json").is_file()
    return path if one or (path / "dataset_dict.json").is_file() else None


def read(root: Path, scan: Scanner) -> Listing:
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
            rest = (None if values.get(c) is None else str(values[c]) for c in _COLUMNS)
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
        form="hub",
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
    known: dict[str, Split] = SPLITS
    return part if isinstance(part, str) and part.lower() in known else "train"


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
    names = [label, *(name for name in _COLUMNS if name in table.column_names)]
    columns = [table.data.column(name).to_pylist() for name in names]
    for values in zip(*columns, strict=True):
        yield dict(zip(names, values, strict=True))
