"""CIFAR-10 and CIFAR-100 as torchvision and their own page leave them on disk.

Two forms of each: "python" (pickles, read by `pickles` without running them) and "binary" (records
of one or two label bytes and 3,072 bytes of pixels, channels first).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pfedmma_deploy.data.class_names import class_name
from pfedmma_deploy.data.readers.base import Reader, Scanner, StoredDataset, read_lines
from pfedmma_deploy.data.readers.pickles import array_of, read_pickle
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Example, Split

_PIXELS: Final = 3 * 32 * 32
_PAGE: Final = "https://www.cs.toronto.edu/~kriz/cifar.html"


class _Form(NamedTuple):
    """One of the four forms; file names are those of the archives."""

    name: str
    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    """The file of class names."""
    key: str
    """In pickles, what labels are called; their names are `<key without s>_names`."""
    num_labels: int
    """In binary files, label bytes before the pixels; the last is the class, 0 means a pickle."""


_TEN: Final = tuple(f"data_batch_{number}" for number in range(1, 6))
_BIN: Final = tuple(f"{name}.bin" for name in _TEN)
_FORMS: Final = (
    _Form("cifar10", "cifar-10-batches-py", _TEN, "test_batch", "batches.meta", "labels", 0),
    _Form("cifar10", "cifar-10-batches-bin", _BIN, "test_batch.bin", "batches.meta.txt", "", 1),
    _Form("cifar100", "cifar-100-python", ("train",), "test", "meta", "fine_labels", 0),
    # The first label byte is the superclass.
    _Form(
        "cifar100", "cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", "", 2
    ),
)


def find(path: Path) -> Path | None:
    """The folder with the batches: `path` itself, or the archive's folder in it."""
    for place in (path, *(path / form.folder for form in _FORMS)):
        if _form(place) is not None:
            return place
    return None


def _form(folder: Path) -> _Form | None:
    """A form is told by its test batch and list of names; a missing batch is reported later."""
    for form in _FORMS:
        if (folder / form.test).is_file() and (folder / form.names).is_file():
            return form
    return None


def read(root: Path, scan: Scanner) -> StoredDataset:
    """All images, in the order of the files, and in memory: 3,072 bytes each, 184 MB in all.

    Keys are `<split>-<number>`: no slash, because "train" is a class of CIFAR-100 and would look
    like its folder.

    Raises:
        DataError: a file that is missing or holds something else.
    """
    form = _form(root)
    assert form is not None  # `find` has seen its files
    missing = [name for name in form.train if not (root / name).is_file()]
    if missing:
        expected = ", ".join((*form.train, form.test, form.names))
        raise DataError(
            f"data folder {root}: {form.test} is there, but not {', '.join(missing)}; expected"
            f" {expected}. Unpack the archive again ({_PAGE})"
        )
    names = _read_names(root / form.names, form)
    files: dict[Split, tuple[str, ...]] = {"train": form.train, "test": (form.test,)}
    pixels: dict[str, NDArray[np.uint8]] = {}
    examples: list[Example] = []
    for split, of_split in files.items():
        batches = [_read_batch(root / name, form) for name in of_split]
        pixels[split] = np.concatenate([of_batch for of_batch, _ in batches])
        labels = np.concatenate([of_batch for _, of_batch in batches])
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
            raise DataError(
                f"data folder {root}: labels from {labels.min()} to {labels.max()}, but"
                f" {len(names)} class names; get the archive again from {_PAGE}"
            )
        for number, label in enumerate(labels.tolist()):
            examples.append(Example(f"{split}-{number:05}", label, split))

    def source(key: str) -> Image.Image:
        split, _, number = key.partition("-")
        if split in pixels and number.isdecimal() and int(number) < len(pixels[split]):
            return Image.fromarray(pixels[split][int(number)])
        raise DataError(f"{form.name} has no image {key}; use the examples of this data set")

    return StoredDataset(
        root=root,
        layout="cifar",
        name=form.name,
        class_names=tuple(map(class_name, names)),
        examples=tuple(examples),
        source=source,
    )


def _read_names(file: Path, form: _Form) -> list[str]:
    if form.num_labels:
        return [name for _, name in read_lines(file)]
    found = _dictionary(file).get(f"{form.key[:-1]}_names") or ()
    names = [name.decode("latin-1") if isinstance(name, bytes) else name for name in found]
    if not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{file} holds no class names; get it again from {_PAGE}")
    return names


def _read_batch(file: Path, form: _Form) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels [n, 32, 32, 3] and labels [n]."""
    try:
        if form.num_labels:
            records = np.fromfile(file, np.uint8).reshape(-1, form.num_labels + _PIXELS)
            flat, numbers = records[:, form.num_labels :], records[:, form.num_labels - 1]
        else:
            batch = _dictionary(file)
            flat, numbers = array_of(batch["data"]), batch[form.key]
        labels = np.asarray(numbers, dtype=np.int64)
        if flat.shape != (len(labels), _PIXELS):
            raise ValueError(f"pixels of shape {flat.shape} for {len(labels)} labels")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(
            f"{file} is damaged: {error}. Expected rows of 3,072 bytes of pixels, each with its"
            f" label; get it again from {_PAGE}"
        ) from error
    return np.ascontiguousarray(flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


def _dictionary(file: Path) -> dict[str, Any]:
    """Keys as texts: files of Python 2 and 3 differ in that."""
    found = read_pickle(file)
    if not isinstance(found, dict):
        raise DataError(f"{file} holds no table of images; get it again from {_PAGE}")
    return {k.decode("latin-1") if isinstance(k, bytes) else str(k): v for k, v in found.items()}


READERS: Final = (Reader(find, read),)
