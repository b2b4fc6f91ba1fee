"""FGVC-Aircraft as its authors pack it: variants.txt and one list of images per part."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pfedmma_deploy.data.classes import class_name
from pfedmma_deploy.data.readers.base import Listing, Scanner, keep_present, read_lines
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Example, Split

__all__ = ["find", "read"]

_VARIANTS: Final = "variants.txt"
_LISTS: Final[dict[Split, str]] = {
    "train": "images_variant_train.txt",
    "val": "images_variant_val.txt",
    "test": "images_variant_test.txt",
}


def find(path: Path) -> Path | None:
    """The folder with variants.txt: `path`, or `data/` in it as the archive unpacks."""
    return next((p for p in (path, path / "data") if (p / _VARIANTS).is_file()), None)


def read(root: Path, scan: Scanner) -> Listing:
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
        form="aircraft",
        class_names=tuple(map(class_name, names)),
        examples=present,
        skipped=skipped,
    )
