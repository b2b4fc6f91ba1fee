"""Files that somebody gave, as images: one, many, zips among them, or the sample.

Nothing of a zip is ever written to disk: a member is read into memory, within limits, when its
turn comes. So a path in it leads nowhere, and a zip bomb ends at the limit.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from PIL import ExifTags, Image

from pfedmma_deploy.data.images import IMAGE_FORMATS, decode_image, is_image_name
from pfedmma_deploy.errors import DataError, ImageError

from .model import DemoModel

MOST_BYTES = 50_000_000
"""Of one image file."""
MOST_IMAGES = 1000
"""In one go; what is beyond is left out, and that is said."""
MOST_MEMBERS = 100_000
"""Entries of a zip, images or not."""


def read_image(source: Path | bytes) -> Image.Image:
    """One uploaded image, upright and RGB.

    Raises:
        ImageError: it cannot be read; the message is a sentence for the page.
    """
    try:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
    except OSError as error:
        raise ImageError(f"This file cannot be opened: {error.strerror}.") from error
    if size > MOST_BYTES:
        raise ImageError(
            f"This file is too large: {size / 1e6:.0f} MB, {MOST_BYTES / 1e6:.0f} MB are allowed. "
            "Scale the image down."
        )
    try:
        return decode_image(source)
    except ImageError as error:
        raise ImageError(f"This file is not an image that I can read: {error}.") from error


def remarks(source: Path | bytes) -> list[str]:
    """What is special about a readable image: it moves, it was turned, it is see-through."""
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    found = []
    with Image.open(stream, formats=IMAGE_FORMATS) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            found.append(f"Of its {frames} frames, the first was used.")
        # Damaged EXIF is ignored when the pixels are read, too.
        with suppress(Exception):
            if image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):
                found.append("It was turned upright, as its camera noted.")
        if image.has_transparency_data:
            found.append("Its transparency was ignored.")
        if min(image.size) < 24:
            width, height = image.size
            found.append(f"It is tiny ({width} x {height} pixels): expect little.")
    return found


def thumbnail(image: Image.Image, side: int = 112) -> bytes:
    """A small JPEG of an RGB image; images that are small already stay as they are, as PNG."""
    buffer = io.BytesIO()
    if max(image.size) <= side:
        image.save(buffer, "PNG")
    else:
        small = image.copy()
        small.thumbnail((side, side))
        small.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


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

    items = []
    for example in model.tests[:count]:
        read = partial(sample.open_image, example)
        items.append(Item(Path(example.key).name, model.label(example), read))
    return items


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
                found, strangers = _zip_items(model, file, stack)
                items += found
                others += strangers
            else:
                read = partial(read_image, file.path)
                items.append(Item(file.name, _label(model, file.name), read))
        if not items:
            raise DataError(
                "There are no images in these files: .jpg, .png, .webp and .bmp are read."
            )
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
        yield items[:most], said


def _zip_items(model: DemoModel, file: Upload, stack: ExitStack) -> tuple[list[Item], int]:
    """The images of a zip in the order of their names, and how many files were none.

    `stack` keeps the zip open, because a member is read when its turn comes.
    """
    try:
        archive = stack.enter_context(zipfile.ZipFile(file.path))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{file.name} is not a zip that I can read: {error}.") from error
    members = [info for info in archive.infolist() if not info.is_dir()]
    if len(members) > MOST_MEMBERS:
        raise DataError(
            f"{file.name} holds {len(members):,} files; {MOST_MEMBERS:,} are allowed. Split it."
        )
    items = []
    for info in sorted(members, key=lambda info: info.filename):
        parts = PurePosixPath(info.filename).parts
        # macOS adds a hidden twin to every file.
        hidden = any(part.startswith(".") and part not in {".", ".."} for part in parts)
        if is_image_name(info.filename) and not hidden and "__MACOSX" not in parts:
            read = partial(_read_member, archive, info)
            items.append(Item(info.filename, _label(model, info.filename), read))
    return items, len(members) - len(items)


def _label(model: DemoModel, name: str) -> int | None:
    """The class whose name one of the folders has, the innermost first."""
    for part in reversed(PurePosixPath(name).parts[:-1]):
        label = model.label_of(part)
        if label is not None:
            return label
    return None


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Image.Image:
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
