"""Data sets of the few-shot literature, with or without a `split_zhou_*.json` of CoOp.

The file is one object, `{"train": [...], "val": [...], "test": [...]}`, of rows `[path, class
number, class name]`; paths begin in the data set's image folder (CoOp, arXiv 2109.01134,
DATASETS.md). The number decides the class order, so that base and novel classes are the published
ones.

Without it, what a download alone gives is read: the same images in the splits that the data's
authors published. These are not the splits of the few-shot papers, and the user is told so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, get_args

from pfedmma_deploy.data.catalog import KnownDataset, known_datasets
from pfedmma_deploy.data.class_names import fix_name
from pfedmma_deploy.data.dataset_checks import find_problem
from pfedmma_deploy.data.readers.base import (
    Listing,
    Reader,
    Scanner,
    keep_present,
    order_classes,
    read_json,
    read_lines,
)
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Example, Split

Row = tuple[str, str, Split]
"""(path below the image folder, class, split)."""

_PATTERN: Final = "split_zhou_*.json"
_FORM: Final = '{"train": [[path, class number, class name], ...], "val": [...], "test": [...]}'
_IGNORED: Final = ("BACKGROUND_Google", "Faces_easy")


def _find_split_file(path: Path) -> Path | None:
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


def _read_split_file(file: Path, scan: Scanner) -> Listing:
    """The images that the split file names, in the parts that it puts them in.

    Raises:
        DataError: a split file of an unknown data set or of another form, one image in two places,
            or no image where it should be.
    """
    known = _known_by_file(file)
    root = file.parent
    rows = list(_rows(file))
    pairs = ((number, fix_name(known.name, name)) for _, _, number, name in rows)
    names, labels = order_classes(pairs, file)
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
    return Listing(root=root, layout="split", class_names=names, examples=present, skipped=skipped)


def _known_by_file(file: Path) -> KnownDataset:
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


def _find_published(path: Path) -> Path | None:
    """`path`, where it is the folder of a known data set that lacks only its split file.

    Also the folder of the same name in it, as torchvision unpacks DTD.

    Raises:
        DataError: such a folder of a data set whose parts nobody but the split file tells.
    """
    for place in (path, path / path.name):
        known = _known_by_folder(place)
        if known is not None and known.name in _PUBLISHED:
            return place
        if known is not None:
            raise DataError(
                f"data folder {place}: this looks like {known.title}, but {known.split_file} is not"
                f" there. Expected {', '.join(known.expects)}; the file is at {known.split}"
            )
    return None


def _known_by_folder(path: Path) -> KnownDataset | None:
    for known in known_datasets().values():
        start = known.expects[0].split("/")[0]
        names = {folder.rpartition("/")[2] for folder in known.folders}
        if known.split_file and path.name in names and (path / start).is_dir():
            return known
    return None


def _read_published(root: Path, scan: Scanner) -> Listing:
    """The images of the published parts; where there are none, all train and parts are set aside.

    Raises:
        DataError: a list that is missing or of another form, or no image where it says.
    """
    known = _known_by_folder(root)
    assert known is not None  # `find` has seen its folders
    found = scan(root)
    prefix = f"{known.image_folder}/"
    below = [key.removeprefix(prefix) for key in found.images if key.startswith(prefix)]
    rows = list(_PUBLISHED[known.name](root, below))
    # Without numbers in a file, those that CoOp's script gives: of the sorted folders.
    folders = sorted({folder for _, folder, _ in rows})
    numbers = {folder: number for number, folder in enumerate(folders)}
    pairs = [(number, fix_name(known.name, folder)) for folder, number in numbers.items()]
    names, _ = order_classes(pairs, root)
    examples = {}
    for path, folder, split in rows:
        examples[prefix + path] = Example(prefix + path, numbers[folder], split)
    where = f"{known.expects[0]} in {root}"
    present, skipped = keep_present(examples, found, root, where)

    advice = [f"{known.split_file}, from {known.split}"]
    return Listing(
        root=root,
        layout="official",
        class_names=names,
        examples=present,
        skipped=skipped,
        find_problems=lambda _: find_problem("no-split-file", advice),
    )


def _folders(root: Path, paths: Iterable[str]) -> Iterator[Row]:
    """Caltech-101 and EuroSAT publish no parts."""
    for path in paths:
        name = path.partition("/")[0]
        if name not in _IGNORED:
            yield path, name, "train"


def _pets(root: Path, paths: Iterable[str]) -> Iterator[Row]:
    for file, split in _lists(root / "annotations", {"trainval.txt": "train", "test.txt": "test"}):
        for _, line in read_lines(file):
            image = line.split(" ")[0]
            yield f"{image}.jpg", image.rpartition("_")[0].lower(), split


def _food(root: Path, paths: Iterable[str]) -> Iterator[Row]:
    for file, split in _lists(root / "meta", {"train.txt": "train", "test.txt": "test"}):
        for _, line in read_lines(file):
            yield f"{line}.jpg", line.partition("/")[0], split


def _textures(root: Path, paths: Iterable[str]) -> Iterator[Row]:
    """The first of the ten splits that the authors published."""
    parts: dict[str, Split] = {"train1.txt": "train", "val1.txt": "val", "test1.txt": "test"}
    for file, split in _lists(root / "labels", parts):
        for _, line in read_lines(file):
            yield line, line.partition("/")[0], split


def _lists(folder: Path, parts: dict[str, Split]) -> Iterator[tuple[Path, Split]]:
    absent = [name for name in parts if not (folder / name).is_file()]
    if absent:
        raise DataError(
            f"{folder} lacks {', '.join(absent)}, and there is no split file beside it; expected"
            " either. Unpack the whole archive"
        )
    for name, split in parts.items():
        yield folder / name, split


_PUBLISHED: Final[dict[str, Callable[[Path, Iterable[str]], Iterator[Row]]]] = {
    "caltech-101": _folders,
    "eurosat": _folders,
    "oxford_pets": _pets,
    "food-101": _food,
    "dtd": _textures,
}


READERS: Final = (
    Reader(_find_split_file, _read_split_file, keeps_order=True),
    Reader(_find_published, _read_published, keeps_order=True),
)
