"""Data sets with a file of class names: FGVC-Aircraft and ImageNet.

FGVC-Aircraft as its authors pack it has variants.txt and one list of images per split. ImageNet in
CoOp's layout has folders named by WordNet id, and classnames.txt for their names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pfedmma_deploy.data.catalog import known_datasets
from pfedmma_deploy.data.class_names import class_name
from pfedmma_deploy.data.readers.base import Listing, Scanner, keep_present, read_lines
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Example, Split

_VARIANTS: Final = "variants.txt"
_LISTS: Final[dict[Split, str]] = {
    "train": "images_variant_train.txt",
    "val": "images_variant_val.txt",
    "test": "images_variant_test.txt",
}
_NAMES: Final = "classnames.txt"
# The public validation set is what everybody tests on: the test labels were never published. A
# validation part is set aside from the training images.
_PARTS: Final[dict[str, Split]] = {"train": "train", "val": "test"}


def find_aircraft(path: Path) -> Path | None:
    """The folder with variants.txt: `path`, or `data/` in it as the archive unpacks."""
    return next((p for p in (path, path / "data") if (p / _VARIANTS).is_file()), None)


def read_aircraft(root: Path, scan: Scanner) -> Listing:
    """Images by variant; lines of the lists are `<image number> <variant>`.

    Raises:
        DataError: a list that is absent, a variant that is not in variants.txt, no images.
    """
    names = [line for _, line in read_lines(root / _VARIANTS)]
    labels = {name: label for label, name in enumerate(names)}
    absent = [name for name in _LISTS.values() if not (root / name).is_file()]
    if absent:
        raise DataError(
            f"data folder {root}: {_VARIANTS} is there, but not {', '.join(absent)}; expected all"
            " files of the archive's data folder (https://www.robots.ox.ac.uk/~vgg/data/"
            "fgvc-aircraft/)"
        )
    examples: dict[str, Example] = {}
    for split, name in _LISTS.items():
        for number, line in read_lines(root / name):
            image, _, variant = line.partition(" ")
            if variant.strip() not in labels:
                raise DataError(
                    f"{root / name}, line {number}: variant '{variant.strip()}' is not in"
                    f" {_VARIANTS}; expected `<image number> <variant>`"
                )
            key = f"images/{image}.jpg"
            if key in examples:
                raise DataError(f"{root / name}, line {number}: image {image} is listed twice")
            examples[key] = Example(key, labels[variant.strip()], split)
    where = f"images/*.jpg in {root}"
    present, skipped = keep_present(examples, scan(root), root / _LISTS["train"], where)
    return Listing(
        root=root,
        layout="aircraft",
        class_names=tuple(map(class_name, names)),
        examples=present,
        skipped=skipped,
    )


def find_imagenet(path: Path) -> Path | None:
    """`path`, where it has classnames.txt and images/train or train.

    Raises:
        DataError: images/train has folders named by WordNet ids, but there is no classnames.txt.
    """
    trained = any((path / base / "train").is_dir() for base in ("images", "."))
    if trained and (path / _NAMES).is_file():
        return path
    if any((path / "images" / "train").glob("n[0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9]")):
        where = known_datasets()["imagenet"].split
        raise DataError(
            f"data folder {path}: this looks like ImageNet, but {_NAMES} is not there; expected one"
            f" line `<folder> <name>` for each class folder. CoOp's file is at {where}"
        )
    return None


def read_imagenet(root: Path, scan: Scanner) -> Listing:
    """Training images, and those of val/ as test images, in the order of the WordNet ids.

    Raises:
        DataError: a class folder without a line in classnames.txt, a class folder of val/ that
            train/ does not have, or no images.
    """
    names: dict[str, str] = {}
    for number, line in read_lines(root / _NAMES):
        folder, _, name = line.partition(" ")
        if not name.strip():
            raise DataError(
                f"{root / _NAMES}, line {number}: '{line}' has no name; expected `<folder> <name>`"
            )
        names[folder] = name.strip()
    base = "images/" if (root / "images").is_dir() else ""
    found = scan(root)
    by_folder = _images_by_folder(found.images, base)
    order = sorted({folder for part, folder in by_folder if part == "train"})
    if not order:
        raise DataError(f"data folder {root}: no images in {base}train/<class>/")
    _check_folders(root, by_folder, order, names)
    labels = {folder: label for label, folder in enumerate(order)}
    examples = [
        Example(key, labels[folder], _PARTS[part])
        for (part, folder), keys in by_folder.items()
        for key in keys
    ]
    return Listing(
        root=root,
        layout="imagenet",
        class_names=tuple(names[folder] for folder in order),
        examples=sorted(examples, key=lambda example: example.key),
        skipped=list(found.skipped),
    )


def _images_by_folder(keys: list[str], base: str) -> dict[tuple[str, str], list[str]]:
    """Keys by (train or val, class folder); images elsewhere do not count."""
    by_folder: dict[tuple[str, str], list[str]] = {}
    for key in keys:
        part, _, rest = key.removeprefix(base).partition("/")
        folder, slash, name = rest.partition("/")
        if key.startswith(base) and part in _PARTS and slash and "/" not in name:
            by_folder.setdefault((part, folder), []).append(key)
    return by_folder


def _check_folders(
    root: Path,
    by_folder: dict[tuple[str, str], list[str]],
    order: list[str],
    names: dict[str, str],
) -> None:
    unnamed = [folder for folder in order if folder not in names]
    if unnamed:
        raise DataError(
            f"{root / _NAMES} has no line for {len(unnamed)} class folders ({unnamed[0]}, ...);"
            " expected `<folder> <name>` for each. Get the file as CoOp's DATASETS.md says"
        )
    known = set(order)
    alone = sorted({folder for _, folder in by_folder} - known)
    if alone:
        raise DataError(
            f"data folder {root}: val/ has class folders that train/ lacks ({alone[0]}, ...):"
            " unpack both parts of ImageNet"
        )
