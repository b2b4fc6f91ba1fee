"""What readers have in common: the list that they make, and small files that they read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from PIL import Image

from pfedmma_deploy.data.class_names import class_name
from pfedmma_deploy.data.images import ImageSource
from pfedmma_deploy.data.scan import Scan
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Example, Problem, Skipped, Split

Scanner = Callable[[Path], Scan]
"""`scan.scan`: what lies below a folder, possibly remembered."""
Opened = ImageSource | Image.Image
"""Where an image is, or the image itself."""

SPLITS: Final[dict[str, Split]] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""The split of a data set by what people call it, in lower case."""
_NAMED: Final = 3


@dataclass(slots=True, kw_only=True)
class Listing:
    """The images that a data set names, before any of them is opened."""

    root: Path
    """What keys are relative to."""
    layout: str
    class_names: tuple[str, ...]
    examples: Sequence[Example]
    skipped: Sequence[Skipped] = ()
    name: str = ""
    """Empty for the name of the folder or file."""
    source: Callable[[str], Opened] | None = None
    """Where the image of a key is; None means a file below `root`."""
    find_problems: Callable[[Sequence[Example]], Iterable[Problem]] = field(
        default=lambda readable: ()
    )
    """Called with the examples that can be read."""


class Reader(NamedTuple):
    """One way in which data sets lie on disk."""

    find: Callable[[Path], Path | None]
    """The path to give to `read`, or None where the layout is another."""
    read: Callable[[Path, Scanner], Listing]
    keeps_order: bool = False
    """Whether classes have the order of the publisher's own lists, sorted or not."""


def read_text(file: Path) -> str:
    """The text of a UTF-8 file. Raises `DataError` that names the file."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as UTF-8 text: {error}") from error


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """(line number, text) of the lines that are not blank. Raises `DataError`."""
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def read_json(file: Path) -> Any:
    """The value in a JSON file. Raises `DataError` that names the file."""
    try:
        return json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not valid JSON: {error}") from error


def order_classes(
    pairs: Iterable[tuple[int, str]], file: Path
) -> tuple[tuple[str, ...], dict[int, int]]:
    """Class names in the order of their numbers, and the label of each number, from 0 without gaps.

    Args:
        pairs: (number, name) of the images; underscores in names become spaces.
        file: where they stand, for messages.

    Raises:
        DataError: a number that has two names.
    """
    names: dict[int, str] = {}
    for number, name in pairs:
        known = names.setdefault(number, name)
        if known != name:
            raise DataError(
                f"{file}: class number {number} is called both '{known}' and '{name}'; expected"
                " one name per number. Get the file again from where it came from"
            )
    # Numbers have gaps where somebody took some of the classes only; labels have none.
    order = sorted(names)
    return tuple(class_name(names[n]) for n in order), {n: label for label, n in enumerate(order)}


def keep_present(
    rows: Mapping[str, Example], found: Scan, file: Path, expected: str
) -> tuple[list[Example], list[Skipped]]:
    """The examples whose file exists, in ascending order of keys, and the others as skipped.

    Args:
        rows: examples by key.
        found: what lies below the root.
        file: the list that names them.
        expected: where the images should lie, for the message.

    Raises:
        DataError: none of them exists.
    """
    # Compared with what lies there: a path in a list cannot lead out of the folder.
    present = set(found.images)
    missing = sorted(key for key in rows if key not in present)
    if len(missing) == len(rows):
        shown = ", ".join(missing[:_NAMED]) or "nothing at all"
        raise DataError(
            f"{file} names {len(rows):,} images and none of them is there: expected {expected},"
            f" for example {shown}. Unpack the images there, or name the folder that holds both"
        )
    reasons = {skipped.path: skipped.reason for skipped in found.skipped}
    absent = f"{file.name} names it, but there is no such file"
    skipped = [Skipped(key, reasons.pop(key, absent)) for key in missing]
    skipped += [Skipped(path, reason) for path, reason in reasons.items()]
    return [rows[key] for key in sorted(rows.keys() - set(missing))], skipped
