"""Data sets with lists that their publishers put beside the images.

- FGVC-Aircraft as its authors pack it: variants.txt and one list of images per split.
- ImageNet in CoOp's layout: folders named by WordNet id, and classnames.txt for their names.
- DomainNet: `<domain>_train.txt` and `<domain>_test.txt`, with lines of `<domain>/<class>/<image>
  <class number>`; the lists lie beside the domain folders, or in splits/ (Dassl).
- Office-Caltech10 and ten classes of DomainNet as FedBN shares them: `<domain>_train.pkl` and
  `<domain>_test.pkl`, each a pair: the paths and the class names of the images (arXiv 2102.07623;
  pFedMMA's domain experiments use them).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final, get_args

from pfedmma_deploy.data.catalog import known_datasets
from pfedmma_deploy.data.readers.base import (
    Reader,
    Row,
    Scanner,
    StoredDataset,
    list_images,
    name_numbers,
    read_lines,
)
from pfedmma_deploy.data.readers.pickles import read_pickle, texts_of
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Example, Split

_VARIANTS: Final = "variants.txt"
_LISTS: Final[dict[Split, str]] = {
    "train": "images_variant_train.txt",
    "val": "images_variant_val.txt",
    "test": "images_variant_test.txt",
}
_NAMES: Final = "classnames.txt"


def _find_aircraft(path: Path) -> Path | None:
    """The folder with variants.txt: `path`, or `data/` in it as the archive unpacks."""
    for place in (path, path / "data"):
        if (place / _VARIANTS).is_file():
            return place
    return None


def _read_aircraft(root: Path, scan: Scanner) -> StoredDataset:
    """Images by variant; lines of the lists are `<image number> <variant>`."""
    names = [line for _, line in read_lines(root / _VARIANTS)]
    labels = {name: label for label, name in enumerate(names)}
    absent = [name for name in _LISTS.values() if not (root / name).is_file()]
    if absent:
        raise DataError(
            f"data folder {root}: {_VARIANTS} is there, but not {', '.join(absent)}; expected all"
            " files of the archive's data folder (https://www.robots.ox.ac.uk/~vgg/data/"
            "fgvc-aircraft/)"
        )
    rows = []
    for split, name in _LISTS.items():
        for number, line in read_lines(root / name):
            image, _, variant = line.partition(" ")
            if variant.strip() not in labels:
                raise DataError(
                    f"{root / name}, line {number}: variant '{variant.strip()}' is not in"
                    f" {_VARIANTS}; expected `<image number> <variant>`"
                )
            rows.append(Row(f"{image}.jpg", labels[variant.strip()], split))
    file, where = root / _LISTS["train"], f"images/*.jpg in {root}"
    return list_images(
        root, "aircraft", rows, dict(enumerate(names)), scan(root), file, where, "images/"
    )


def _find_imagenet(path: Path) -> Path | None:
    """`path`, where it has classnames.txt and images/train or train."""
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


def _read_imagenet(root: Path, scan: Scanner) -> StoredDataset:
    """Training images, and those of val/ as test images, in the order of the WordNet ids."""
    names: dict[str, str] = {}
    for number, line in read_lines(root / _NAMES):
        folder, _, name = line.partition(" ")
        if not name.strip():
            raise DataError(
                f"{root / _NAMES}, line {number}: '{line}' has no name; expected `<folder> <name>`"
            )
        # classnames.txt may name all classes of ImageNet where only some are there.
        names[folder] = name.strip()
    base = "images/" if (root / "images").is_dir() else ""
    found = scan(root)
    folders: dict[str, set[str]] = {"train": set(), "val": set()}
    images: list[tuple[str, str, Split]] = []
    for key in found.images:
        match key.removeprefix(base).split("/"):
            case [("train" | "val") as part, folder, _] if key.startswith(base):
                folders[part].add(folder)
                # The public validation set is what everybody tests on: the test labels were never
                # published. A validation split is set aside from the training images.
                images.append((key, folder, "train" if part == "train" else "test"))
    order = sorted(folders["train"])
    if not order:
        raise DataError(f"data folder {root}: no images in {base}train/<class>/")
    unnamed = [folder for folder in order if folder not in names]
    if unnamed:
        raise DataError(
            f"{root / _NAMES} has no line for {len(unnamed)} class folders ({unnamed[0]}, ...);"
            " expected `<folder> <name>` for each. Get the file as CoOp's DATASETS.md says"
        )
    alone = sorted(folders["val"] - folders["train"])
    if alone:
        raise DataError(
            f"data folder {root}: val/ has class folders that train/ lacks ({alone[0]}, ...):"
            " unpack both parts of ImageNet"
        )
    labels = {folder: label for label, folder in enumerate(order)}
    return StoredDataset(
        root=root,
        layout="imagenet",
        class_names=tuple(names[folder] for folder in order),
        examples=tuple(Example(key, labels[folder], split) for key, folder, split in images),
        skipped=tuple(found.skipped),
    )


def _find_domains(suffix: str, path: Path) -> Path | None:
    """`path`, where a training list has a folder of the same domain."""
    return path if any(split == "train" for _, split, _ in _find_lists(path, suffix)) else None


def _read_domain_texts(root: Path, scan: Scanner) -> StoredDataset:
    """The images that the lists name; the name of a class is that of its folder."""
    lists = _find_lists(root, ".txt")
    rows: list[Row] = []
    for domain, split, file in lists:
        for number, line in read_lines(file):
            path, _, label = line.rpartition(" ")
            parts = path.split("/")
            if len(parts) != 3 or parts[0] != domain or not label.isdecimal():
                raise DataError(
                    f"{file}, line {number}: '{line}' is not `{domain}/<class>/<image> <class"
                    " number>`"
                )
            rows.append(Row(path, int(label), split, domain))
    first = lists[0][2]
    names = name_numbers(((row.number, row.path.split("/")[1]) for row in rows), first)
    where = f"the domain folders in {root}"
    return list_images(root, "lists", rows, names, scan(root), first, where)


def _read_domain_pickles(root: Path, scan: Scanner) -> StoredDataset:
    """The images that the lists name, with the sorted class names."""
    lists = _find_lists(root, ".pkl")
    images: list[tuple[str, str, Split, str]] = []
    for domain, split, file in lists:
        for path, name in _read_pairs(file):
            # Paths begin above the data set's folder, whatever that is called here.
            before, found, after = path.replace("\\", "/").rpartition(f"{domain}/")
            if not found or (before and not before.endswith("/")):
                raise DataError(f"{file}: '{path}' is not in the folder of the domain {domain}")
            images.append((f"{domain}/{after}", name, split, domain))
    names = sorted({name for _, name, _, _ in images})
    numbers = {name: number for number, name in enumerate(names)}
    rows = [Row(path, numbers[name], split, domain) for path, name, split, domain in images]
    where = f"the domain folders in {root}"
    return list_images(root, "fedbn", rows, dict(enumerate(names)), scan(root), lists[0][2], where)


def _find_lists(root: Path, suffix: str) -> list[tuple[str, Split, Path]]:
    """(domain, split, file) of every list that has a domain folder, training lists first."""
    found = []
    for base in (root, root / "splits"):
        for split in get_args(Split):
            ending = f"_{split}{suffix}"
            for file in sorted(base.glob(f"*{ending}")):
                domain = file.name.removesuffix(ending)
                if (root / domain).is_dir():
                    found.append((domain, split, file))
    return found


def _read_pairs(file: Path) -> list[tuple[str, str]]:
    """(path, class) of every image in a list."""
    found = read_pickle(file)
    try:
        paths, labels = texts_of(found)
        pairs = list(zip(paths, labels, strict=True))
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(
            f"{file} is no pair of paths and class names ({error}); remove the .pkl lists to read"
            " the folders without them"
        ) from error
    if not all(isinstance(text, str) for pair in pairs for text in pair):
        raise DataError(f"{file} holds something else than texts; remove the .pkl lists")
    return pairs


READERS: Final = (
    Reader(_find_aircraft, _read_aircraft, keeps_order=True),
    Reader(_find_imagenet, _read_imagenet, keeps_order=True),
    Reader(partial(_find_domains, ".txt"), _read_domain_texts, keeps_order=True),
    Reader(partial(_find_domains, ".pkl"), _read_domain_pickles, keeps_order=True),
)
