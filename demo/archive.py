"""Many images at once: the files that somebody dropped, zips among them, or the sample.

Nothing of a zip is ever written to disk: a member is read into memory, within limits, when its
turn comes. So a path in it leads nowhere, and a zip bomb ends at the limit.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from pfedmma_deploy.data.images import is_image_name
from pfedmma_deploy.errors import DataError, ImageError
from pfedmma_deploy.types import Example

from .inputs import MOST_BYTES, read_image
from .model import DemoModel

__all__ = ["MOST_IMAGES", "Item", "Upload", "open_images", "sample_items"]

MOST_IMAGES = 1000
"""In one go; what is beyond is left out, and that is said."""
MOST_MEMBERS = 100_000
"""Entries of a zip, images or not."""


@dataclass(frozen=True)
class Item:
    """One image that waits to be read."""

    name: str
    label: int | None
    """The bundle's label of its true class, where that is known."""
    read: Callable[[], Image.Image]
    """Decodes it; raises `ImageError`."""


@dataclass(frozen=True)
class Upload:
    """A file that somebody gave."""

    name: str
    """What it was called, with the folders that it came from, where they are known."""
    path: Path
    """Where it lies now."""

    @classmethod
    def plain(cls, path: str | Path) -> Upload:
        """A file of which only its own name is known."""
        return cls(Path(path).name, Path(path))


def sample_items(model: DemoModel, count: int) -> list[Item]:
    """The first `count` of the sample's test images, classes in turn.

    Raises:
        DataError: no sample suits the model.
    """
    sample = model.sample
    if sample is None:
        raise DataError(
            "This model was trained on images that are not part of the package: "
            "choose images of your own."
        )

    def reader(example: Example) -> Callable[[], Image.Image]:
        return lambda: sample.open_image(example)

    return [
        Item(Path(example.key).name, model.label(example), reader(example))
        for example in model.tests[:count]
    ]


@contextmanager
def open_images(
    model: DemoModel, files: Sequence[Upload], most: int = MOST_IMAGES
) -> Iterator[tuple[list[Item], list[str]]]:
    """Images among `files` and in the zips among them, and what should be said about them.

    They can be read while the block runs.

    An image counts as of the class whose name its folder has (case and underscores do not matter);
    where no folder is known, neither is the class.

    Raises:
        DataError: there is no image at all, or a zip that cannot be used.
    """
    items: list[Item] = []
    others = 0
    with ExitStack() as stack:
        for file in files:
            if file.name.lower().endswith(".zip"):
                archive = stack.enter_context(_open_zip(file))
                found, strangers = _zip_items(model, archive, file.name)
                items += found
                others += strangers
            else:
                items.append(Item(file.name, _label(model, file.name), _file_reader(file.path)))
        if not items:
            raise DataError(
                "There are no images in these files: .jpg, .png, .webp and .bmp are read."
            )
        yield items[:most], _remarks(items, most, others)


def _remarks(items: Sequence[Item], most: int, others: int) -> list[str]:
    said = []
    if len(items) > most:
        said.append(f"Only the first {most:,} of {len(items):,} images were taken.")
    if others:
        said.append(f"{others:,} other files in the zip were left out.")
    if all(item.label is None for item in items[:most]):
        said.append(
            "True classes are not known, so nothing can be right or wrong: for that, choose a "
            "folder or a zip with one folder per class inside."
        )
    return said


def _file_reader(path: Path) -> Callable[[], Image.Image]:
    return lambda: read_image(path)


def _open_zip(file: Upload) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file.path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{file.name} is not a zip that I can read: {error}.") from error


def _zip_items(model: DemoModel, archive: zipfile.ZipFile, name: str) -> tuple[list[Item], int]:
    """The images of one zip in the order of their names, and how many files were none."""
    members = [info for info in archive.infolist() if not info.is_dir()]
    if len(members) > MOST_MEMBERS:
        raise DataError(
            f"{name} holds {len(members):,} files; {MOST_MEMBERS:,} are allowed. Split it."
        )
    images = [info for info in members if _is_wanted(info.filename)]
    images.sort(key=lambda info: info.filename)
    items = [
        Item(info.filename, _label(model, info.filename), _member_reader(archive, info))
        for info in images
    ]
    return items, len(members) - len(images)


def _is_wanted(name: str) -> bool:
    # macOS adds a hidden twin to every file.
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") and part not in {".", ".."} for part in parts)
    return is_image_name(name) and not hidden and "__MACOSX" not in parts


def _label(model: DemoModel, name: str) -> int | None:
    """The class whose name one of the folders has, the innermost first."""
    for part in reversed(PurePosixPath(name).parts[:-1]):
        label = model.label_of(part)
        if label is not None:
            return label
    return None


def _member_reader(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], Image.Image]:
    def read() -> Image.Image:
        if info.flag_bits & 0x1:
            raise ImageError("It is encrypted: unlock the zip first.")
        if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            # Others may ask for gigabytes of memory before the first byte.
            raise ImageError("It is compressed in an unusual way: make a plain zip.")
        try:
            with archive.open(info) as stream:
                # One byte more than allowed: what a header says about sizes is not believed.
                data = stream.read(MOST_BYTES + 1)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError) as error:
            raise ImageError(f"The zip is damaged here: {error}.") from error
        return read_image(data)

    return read
