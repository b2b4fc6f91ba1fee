"""One image file in, RGB pixels out, whatever the file holds: pixels or an `ImageError`.

Pillow reports damaged files through many exception types (`OSError`, `SyntaxError`,
`DecompressionBombError`, `struct.error`, ...); here they all become one.
"""

from __future__ import annotations

import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pfedmma_deploy.errors import ImageError

IMAGE_SUFFIXES: tuple[str, ...] = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
"""File name endings that count as images, in any case."""
IMAGE_FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP")
"""The only Pillow decoders that untrusted bytes ever reach."""

ImageSource = bytes | str | os.PathLike[str] | BinaryIO
_Reader = Callable[[Image.Image], Image.Image]

_OTHER_CONTENT = (
    (b"GIF8", 0, "a GIF image"),
    (b"II*\0", 0, "a TIFF image"),
    (b"MM\0*", 0, "a TIFF image"),
    (b"ftyphei", 4, "a HEIC image"),
    (b"ftypmif1", 4, "a HEIC image"),
    (b"ftypavif", 4, "an AVIF image"),
    (b"%PDF", 0, "a PDF document"),
    (b"PK\3\4", 0, "a ZIP archive"),
    (b"version https://git-lfs", 0, "a Git LFS pointer, not the image itself"),
)
# `warnings.catch_warnings` changes process-wide state, and files are verified by many threads.
_WARNINGS_LOCK = threading.Lock()


def is_image_name(name: str) -> bool:
    """Whether a file name ends like an image that this package reads (any case)."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def decode_image(source: ImageSource, max_pixels: int | None = None) -> Image.Image:
    """Decodes one JPEG, PNG, WebP or BMP image to 8-bit RGB.

    The pixels equal `ImageOps.exif_transpose(image).convert("RGB")`, which is what open_clip
    feeds its models: alpha is dropped, not composited; palettes, grey and CMYK are expanded; of
    an animation the first frame counts. One exception: 16-bit grey keeps its high byte, where
    Pillow would clip everything above 255 to white. EXIF that cannot be read is ignored.

    Args:
        source: the bytes of a file, its path, or an open binary file (left open).
        max_pixels: what has more, by its header, is refused before it is decoded; default
            `PIL.Image.MAX_IMAGE_PIXELS`, which is never exceeded.

    Returns:
        A loaded image in mode "RGB", upright.

    Raises:
        ImageError: the source cannot be read or decoded, is of another format, or has too many
            pixels. The message is the reason, without the path.
    """

    def read(image: Image.Image) -> Image.Image:
        if max_pixels is not None and image.width * image.height > max_pixels:
            raise ImageError(f"more than {max_pixels:,} pixels; scale it down")
        return _to_rgb(image)

    return _guarded(source, read)


def verify_image(source: ImageSource) -> None:
    """Reads an image to its end and throws the pixels away; raises `ImageError` like a decode.

    JPEGs are decoded at an eighth of their size: every byte is read (a header alone would not
    show a truncated file) at a fraction of the time.
    """
    _guarded(source, _read_through)


def _guarded(source: ImageSource, read: _Reader) -> Image.Image:
    try:
        if isinstance(source, bytes):
            return _open(BytesIO(source), read)
        if isinstance(source, str | os.PathLike):
            path = Path(source)
            # A FIFO or a device called photo.jpg would block or never end.
            if not stat.S_ISREG(path.stat().st_mode):
                raise ImageError("a folder, not a file" if path.is_dir() else "not a regular file")
            with path.open("rb") as file:
                return _open(file, read)
        return _open(source, read)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError("not enough memory to decode it") from error
    except Exception as error:  # Pillow's list of exception types is open-ended
        raise ImageError(_reason(error)) from error


def _open(file: BinaryIO, read: _Reader) -> Image.Image:
    start = file.tell()
    try:
        with _quiet():
            image = Image.open(file, formats=IMAGE_FORMATS)
    except UnidentifiedImageError as error:
        file.seek(start)
        raise ImageError(_unidentified(file.read(64))) from error
    if image.width < 1 or image.height < 1:
        raise ImageError(f"has no pixels ({image.width} x {image.height})")
    return read(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    try:
        with _quiet():
            upright = ImageOps.exif_transpose(image)
    except Exception:  # the pixels are good: viewers show such photos as stored, and so do we
        # A copy, because the image refers to its file, which is about to be closed.
        upright = image.copy()
    if upright.mode.startswith("I"):
        samples = np.clip(np.asarray(upright).astype(np.int64), 0, 65535)
        return Image.fromarray((samples >> 8).astype(np.uint8)).convert("RGB")
    # Has no influence on RGB pixels, but makes Pillow warn about palettes with alpha.
    upright.info.pop("transparency", None)
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def _read_through(image: Image.Image) -> Image.Image:
    image.draft(None, (1, 1))
    image.load()
    return image


@contextmanager
def _quiet() -> Iterator[None]:
    """Turns Pillow's bomb warning into an error and silences its others."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _unidentified(head: bytes) -> str:
    if not head:
        return "the file is empty"
    for magic, offset, what in _OTHER_CONTENT:
        if head[offset:].startswith(magic):
            return f"not a JPEG, PNG, WebP or BMP image but {what}"
    return "not a JPEG, PNG, WebP or BMP image, or its header is damaged"


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels; scale it down"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip() or type(error).__name__
    return f"damaged: {text}"
