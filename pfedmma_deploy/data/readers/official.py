"""Few-shot data sets without their `split_zhou_*.json`: the parts that their authors published.

This is what a download alone gives. The images are the same, the parts are not those of the
few-shot papers, and the user is told so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from pfedmma_deploy.data.checks import Problem, find_problem
from pfedmma_deploy.data.known import Known, known_datasets
from pfedmma_deploy.data.readers.base import (
    Listing,
    Scanner,
    keep_present,
    order_classes,
    read_lines,
)
from pfedmma_deploy.data.readers.names import fix_name
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Example, Split

__all__ = ["find", "read"]

Row = tuple[str, str, Split]
"""(path below the image folder, class, part)."""

_IGNORED: Final = ("BACKGROUND_Google", "Faces_easy")


def find(path: Path) -> Path | None:
    """`path`, where it is the folder of a known data set that lacks only its split file.

    Also the folder of the same name in it, as torchvision unpacks DTD.

    Raises:
        DataError: such a folder of a data set whose parts nobody but the split file tells.
    """
    for place in (path, path / path.name):
        known = _known(place)
        if known is not None and known.name in _PARTS:
            return place
        if known is not None:
            raise DataError(
                f"data folder {place}: this looks like {known.title}, but {known.split_file} is not"
                f" there. Expected {', '.join(known.expects)}; the file is at {known.split}"
            )
    return None


def _known(path: Path) -> Known | None:
    for known in known_datasets().values():
        start = known.expects[0].split("/")[0]
        names = {folder.rpartition("/")[2] for folder in known.folders}
        if known.split_file and path.name in names and (path / start).is_dir():
            return known
    return None


def read(root: Path, scan: Scanner) -> Listing:
    """The images of the published parts; where there are none, all train and parts are set aside.

    Raises:
        DataError: a list that is missing or of another form, or no image where it says.
    """
    known = _known(root)
    assert known is not None  # `find` has seen its folders
    found = scan(root)
    prefix = f"{known.image_folder}/"
    below = [key.removeprefix(prefix) for key in found.images if key.startswith(prefix)]
    rows = list(_PARTS[known.name](root, below))
    classes = sorted({name for _, name, _ in rows})
    numbers = {name: number for number, name in enumerate(classes)}
    pairs = ((number, fix_name(known.name, name)) for name, number in numbers.items())
    names, _ = order_classes(pairs, root)
    examples = {
        prefix + path: Example(prefix + path, numbers[name], split) for path, name, split in rows
    }
    where = f"{known.expects[0]} in {root}"
    present, skipped = keep_present(examples, found, root, where)

    def problems(_: Sequence[Example]) -> tuple[Problem, ...]:
        return tuple(find_problem("no-split-file", [f"{known.split_file}, from {known.split}"]))

    return Listing(
        root=root,
        form="official",
        class_names=names,
        examples=present,
        skipped=skipped,
        find_problems=problems,
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
    """The first of the ten divisions that the authors published."""
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
    yield from ((folder / name, split) for name, split in parts.items())


_PARTS: Final[dict[str, Callable[[Path, Iterable[str]], Iterator[Row]]]] = {
    "caltech-101": _folders,
    "eurosat": _folders,
    "oxford_pets": _pets,
    "food-101": _food,
    "dtd": _textures,
}
