"""Data sets of the few-shot literature, with or without a `split_zhou_*.json` of CoOp.

The file is one object, `{"train": [...], "val": [...], "test": [...]}`, of rows `[path, class
number, class name]`; paths begin in the data set's image folder (CoOp, arXiv 2109.01134,
DATASETS.md). The number decides the class order, so that base and novel classes are the published
ones.

Without it, what a download alone gives is read: the same images in the splits that the data's
authors published. These are not the splits of the few-shot papers, and the user is told so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, get_args

from pfedmma_deploy.data.catalog import KnownDataset, known_datasets
from pfedmma_deploy.data.dataset_checks import find_problem
from pfedmma_deploy.data.images import is_image_name
from pfedmma_deploy.data.readers.base import (
    Reader,
    Row,
    Scanner,
    StoredDataset,
    list_images,
    name_numbers,
    read_json,
    read_lines,
)
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Split

_PATTERN: Final = "split_zhou_*.json"
_FORM: Final = '{"train": [[path, class number, class name], ...], "val": [...], "test": [...]}'
_IGNORED: Final = ("BACKGROUND_Google", "Faces_easy")
_YEAR: Final = re.compile(r"(?P<car>.+) (?P<year>(?:19|20)\d\d)")
_CAMEL: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")


def fix_name(dataset: str, name: str) -> str:
    """The name of a class as the few-shot literature writes it, whatever the file was made from.

    The split files that CoOp's authors share hold these names already; files that others made from
    the original annotations may not, and CLIP's accuracy depends on them.

    - caltech-101, eurosat: the renamed classes of CoOp, in the catalog (`Faces` is `face`).
    - stanford_cars: the year comes first (`2012 Audi TT RS Coupe`).
    - sun397: indoor or outdoor comes first (`a/apse/indoor` is `indoor apse`).
    - ucf101: words apart (`ApplyEyeMakeup` is `Apply Eye Makeup`).
    - oxford_pets: lower case, as in CLIP's own list of breeds.

    Underscores stay; `class_name` makes spaces of them.
    """
    if dataset == "stanford_cars" and (match := _YEAR.fullmatch(name)):
        return f"{match['year']} {match['car']}"
    if dataset == "sun397" and "/" in name:
        words = [word for word in name.split("/") if len(word) > 1]
        return " ".join(reversed(words))
    if dataset == "ucf101" and "_" not in name:
        return _CAMEL.sub(" ", name)
    if dataset == "oxford_pets":
        return name.lower()
    return known_datasets()[dataset].renamed.get(name, name)


def _find_split_file(path: Path) -> Path | None:
    """The split file of a data set's folder."""
    found = sorted(path.glob(_PATTERN)) if path.is_dir() else []
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise DataError(
            f"data folder {path}: several split files ({names}); expected one: move the others away"
        )
    return found[0] if found else None


def _read_split_file(file: Path, scan: Scanner) -> StoredDataset:
    """The images that the split file names, in the parts that it puts them in."""
    sets = {known.split_file: known for known in known_datasets().values() if known.split_file}
    if file.name not in sets:
        raise DataError(
            f"{file}: no split file of a known data set; expected one of {', '.join(sets)}"
        )
    known, root = sets[file.name], file.parent
    rows: list[Row] = []
    pairs: list[tuple[int, str]] = []
    for split, path, number, name in _read_rows(file):
        rows.append(Row(path, number, split))
        pairs.append((number, fix_name(known.name, name)))
    where = f"{' and '.join(known.expects[:-1])} in {root}"
    prefix = f"{known.image_folder}/" if known.image_folder else ""
    return list_images(
        root, "split", rows, name_numbers(pairs, file), scan(root), file, where, prefix
    )


def _read_rows(file: Path) -> Iterator[tuple[Split, str, int, str]]:
    table = read_json(file)
    if not isinstance(table, dict) or not {"train", "test"} <= table.keys():
        raise DataError(f"{file}: expected {_FORM}, found another kind of JSON")
    for split in get_args(Split):
        rows = table.get(split, [])
        if not isinstance(rows, list):
            raise DataError(f"{file}: '{split}' is no list; expected {_FORM}")
        for row in rows:
            match row:
                case [str(path), int(number), str(name)] if path and number >= 0 and name.strip():
                    yield split, path.lstrip("/"), number, name
                case _:
                    raise DataError(
                        f"{file}: row {row!r:.80} of '{split}' is not [path, class number, class"
                        " name]"
                    )


def _find_published(path: Path) -> Path | None:
    """`path`, where it is the folder of a known data set that lacks only its split file.

    Also the folder of the same name in it, as torchvision unpacks DTD.
    """
    for place in (path, path / path.name):
        known = _known_by_folder(place)
        if known is not None and known.published is not None:
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


def _read_published(root: Path, scan: Scanner) -> StoredDataset:
    """The images of the published parts; without such, all train and parts are set aside later."""
    known = _known_by_folder(root)
    assert known is not None  # `find` has seen its folders
    found = scan(root)
    prefix = f"{known.image_folder}/"
    below = [key.removeprefix(prefix) for key in found.images if key.startswith(prefix)]
    named = list(_published(root, known, below))
    # Without numbers in a file, those that CoOp's script gives: of the sorted folders.
    numbers = {name: number for number, name in enumerate(sorted({name for _, name, _ in named}))}
    rows = [Row(path, numbers[name], split) for path, name, split in named]
    names = {number: fix_name(known.name, name) for name, number in numbers.items()}
    where = f"{known.expects[0]} in {root}"
    dataset = list_images(root, "official", rows, names, found, root, where, prefix)
    advice = [f"{known.split_file}, from {known.split}"]
    dataset.find_problems = lambda _: find_problem("no-split-file", advice)
    return dataset


def _published(
    root: Path, known: KnownDataset, paths: Iterable[str]
) -> Iterator[tuple[str, str, Split]]:
    """(path below the image folder, class, split) of the images; `paths` are those that exist."""
    assert known.published is not None
    if not known.published:  # Caltech-101 and EuroSAT come without parts
        for path in paths:
            name = path.partition("/")[0]
            if name not in _IGNORED:
                yield path, name, "train"
        return
    absent = [root / name for name in known.published if not (root / name).is_file()]
    if absent:
        raise DataError(
            f"{absent[0].parent} lacks {', '.join(file.name for file in absent)}, and there is no"
            " split file beside it; expected either. Unpack the whole archive"
        )
    for file, split in known.published.items():
        for _, line in read_lines(root / file):
            path = line.split(" ")[0]
            folder, slash, _ = path.partition("/")
            # The pets lie in one folder, each named by its breed and a number.
            name = folder if slash else path.rpartition("_")[0].lower()
            yield path if is_image_name(path) else f"{path}.jpg", name, split


READERS: Final = (
    Reader(_find_split_file, _read_split_file, keeps_order=True),
    Reader(_find_published, _read_published, keeps_order=True),
)
