"""What readers have in common: the list that they make, and small files that they read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from PIL import Image

from pfedmma_deploy.data.class_names import CLASSES_FILE, class_name
from pfedmma_deploy.data.images import ImageSource, decode_image
from pfedmma_deploy.data.scan import Scan
from pfedmma_deploy.errors import DataError, nearest
from pfedmma_deploy.types import Dataset, Example, Problem, Skipped, Split

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


@dataclass(kw_only=True, eq=False, repr=False)
class StoredDataset(Dataset):
    """Images on disk, opened when asked for; a reader lists them without opening any."""

    root: Path
    """What keys are relative to."""
    layout: str
    class_names: tuple[str, ...]
    examples: tuple[Example, ...]
    """Ascending by key. Images of a layout without splits are all "train"."""
    skipped: tuple[Skipped, ...] = ()
    name: str = ""
    """Empty for the name of the folder or file."""
    source: Callable[[str], Opened] | None = None
    find_problems: Callable[[Sequence[Example]], Iterable[Problem]] = field(
        default=lambda readable: ()
    )
    """Called once, with the examples that can be read."""

    def locate(self, key: str) -> Opened:
        """Where the image of a key is, or the image itself."""
        return self.source(key) if self.source else self.root / key

    def open_image(self, example: Example) -> Image.Image:
        """Decoded RGB pixels, EXIF orientation applied. Raises `ImageError`."""
        place = self.locate(example.key)
        return place if isinstance(place, Image.Image) else decode_image(place)


class Reader(NamedTuple):
    """One way in which data sets lie on disk.

    Both functions raise `DataError` that names the file, what was expected in it and what to do.
    """

    find: Callable[[Path], Path | None]
    """The path to give to `read`, or None where the layout is another."""
    read: Callable[[Path, Scanner], StoredDataset]
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


def label_folders(root: Path, folders: Iterable[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Gives every class folder a label, in the order of classes.txt, else of the sorted folders.

    classes.txt has one class per line, in class order: the name of its folder, or the folder, a
    tab or comma, and the name to use instead (`n02123045,tabby cat`). Empty lines and lines that
    begin with # do not count.

    Args:
        root: the data folder, where classes.txt may lie.
        folders: names of the class folders; the same name may come from several clients.

    Returns:
        The class names in order, and the label of each folder.

    Raises:
        DataError: classes.txt has a line without a folder, or none for a folder.
    """
    order = sorted(set(folders))
    names = {folder: class_name(folder) for folder in order}
    if (root / CLASSES_FILE).is_file():
        names = _read_classes_file(root / CLASSES_FILE, order)
    return tuple(names.values()), {folder: label for label, folder in enumerate(names)}


def _read_classes_file(file: Path, folders: Sequence[str]) -> dict[str, str]:
    by_name: dict[str, list[str]] = {}
    for folder in folders:
        by_name.setdefault(class_name(folder), []).append(folder)
    names: dict[str, str] = {}
    for number, line in read_lines(file):
        if line.startswith("#"):
            continue
        # The whole line comes first: a folder may have a comma in its name.
        found = [(line, class_name(line))] if line in folders else []
        same = by_name.get(line, [])
        if len(same) == 1:
            found.append((same[0], line))
        for separator in ("\t", ","):
            folder, _, name = (part.strip() for part in line.partition(separator))
            if folder in folders and name:
                found.append((folder, name))
        if not found:
            raise DataError(
                f"{file}, line {number}: there is no class folder '{line}'{nearest(line, folders)};"
                " expected one line per folder: its name, or `folder,name`"
            )
        folder, name = found[0]
        if folder in names:
            raise DataError(f"{file}, line {number}: class folder '{folder}' stands there twice")
        names[folder] = name
    missing = [folder for folder in folders if folder not in names]
    if missing:
        raise DataError(
            f"{file} has no line for the class folders {', '.join(missing)}; add them where they"
            " belong in the class order, or remove the folders"
        )
    return names


class Row(NamedTuple):
    """One image as a list names it."""

    path: str
    number: int
    """Of its class."""
    split: Split
    domain: str | None = None


def name_numbers(pairs: Iterable[tuple[int, str]], file: Path) -> dict[int, str]:
    """The class name of each number. Raises `DataError` for a number in `file` with two names."""
    names: dict[int, str] = {}
    for number, name in pairs:
        known = names.setdefault(number, name)
        if known != name:
            raise DataError(
                f"{file}: class number {number} is called both '{known}' and '{name}'; expected"
                " one name per number. Get the file again from where it came from"
            )
    return names


def list_images(
    root: Path,
    layout: str,
    rows: Iterable[Row],
    names: Mapping[int, str],
    found: Scan,
    file: Path,
    expected: str,
    prefix: str = "",
) -> StoredDataset:
    """The images of a list that exist, in ascending order of keys; the others are skipped.

    Args:
        root: what keys are relative to.
        layout: as `pfedmma data info` shows it.
        rows: what the list names.
        names: class name by number, in any order; underscores in names become spaces. Labels have
            the order of the numbers.
        found: what lies below the root.
        file: the list, for messages.
        expected: where the images should lie, for the message that there are none.
        prefix: where the paths of the list begin, below the root.

    Raises:
        DataError: an image stands there twice, or none of them exists.
    """
    # Numbers have gaps where somebody took some of the classes only; labels have none.
    order = sorted(names)
    labels = {number: label for label, number in enumerate(order)}
    examples: dict[str, Example] = {}
    for path, number, split, domain in rows:
        key = prefix + path
        if key in examples:
            raise DataError(
                f"{file} names {path} twice ({examples[key].split} and {split}); expected every"
                " image once. Get the file again from where it came from"
            )
        examples[key] = Example(key, labels[number], split, domain=domain)
    # Compared with what lies there: a path in a list cannot lead out of the folder.
    present = set(found.images)
    missing = sorted(key for key in examples if key not in present)
    if len(missing) == len(examples):
        shown = ", ".join(missing[:_NAMED]) or "nothing at all"
        raise DataError(
            f"{file} names {len(examples):,} images and none of them is there: expected {expected},"
            f" for example {shown}. Unpack the images there, or name the folder that holds both"
        )
    reasons = {skipped.path: skipped.reason for skipped in found.skipped}
    absent = f"{file.name} names it, but there is no such file"
    skipped = [Skipped(key, reasons.pop(key, absent)) for key in missing]
    skipped += [Skipped(path, reason) for path, reason in reasons.items()]
    return StoredDataset(
        root=root,
        layout=layout,
        class_names=tuple(class_name(names[number]) for number in order),
        examples=tuple(examples[key] for key in sorted(examples.keys() & present)),
        skipped=tuple(skipped),
    )
