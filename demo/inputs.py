"""One uploaded file as an image, with what a person should know about it."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import ExifTags, Image

from pfedmma_deploy.data.images import IMAGE_FORMATS, decode_image
from pfedmma_deploy.errors import ImageError

__all__ = ["MOST_BYTES", "read_image", "remarks", "thumbnail"]

MOST_BYTES = 50_000_000
"""Of one image file."""


def read_image(source: Path | bytes) -> Image.Image:
    """One uploaded image, upright and RGB.

    Raises:
        ImageError: it cannot be read; the message is a sentence for the page.
    """
    size = len(source) if isinstance(source, bytes) else _size(source)
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
        if _is_turned(image):
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


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise ImageError(f"This file cannot be opened: {error.strerror}.") from error


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except Exception:  # damaged EXIF is ignored when the pixels are read, too
        return False
