"""Whatever a caller has at hand - paths, folders, bytes, PIL images, arrays - as model input."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sized
from itertools import repeat
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pfedmma_deploy.data.images import IMAGE_SUFFIXES, decode_image, is_image_name
from pfedmma_deploy.data.pixels import resize_crop
from pfedmma_deploy.errors import DataError, ImageError, UsageError
from pfedmma_deploy.runtime.manifest import Preprocessing

ImageSource = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]
"""One image: a path, the bytes of a file, a PIL image, or pixels uint8 [H, W], [H, W, 3 or 4]."""
Images = ImageSource | Iterable[ImageSource]
"""One image, a batch of pixels uint8 [N, H, W, 3], or any iterable of images, however long."""


def find_images(places: Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    """Files as they are, folders as the images somewhere below them, patterns as what they match.

    A pattern has `*`, `?` or `[...]`, and `**` for any folders; a file that is really called so
    comes first. Folders and patterns give files whose names end like an image's, in the order of
    their names. Of a folder no more than one level of names is held at a time, of a pattern all
    names that it matches.

    Raises:
        DataError: a folder or a pattern gives no image.
        OSError: a folder cannot be listed.
    """
    for place in places:
        path = Path(place)
        if path.is_dir():
            inside, what = _below(path), f"the folder {path} holds no images"
        elif glob.has_magic(os.fspath(path)) and not path.exists():
            inside, what = _matching(path), f"the pattern {path} matches no images"
        else:
            yield path
            continue
        # What holds no image is most likely a mistyped path: said before anything is predicted.
        first = next(inside, None)
        if first is None:
            *others, last = IMAGE_SUFFIXES
            raise DataError(f"{what} ({', '.join(others)} or {last})")
        yield first
        yield from inside


def _below(folder: Path) -> Iterator[Path]:
    listed = []
    with os.scandir(folder) as entries:
        for entry in entries:
            # Links to folders are not followed: they may lead back here.
            is_folder = entry.is_dir(follow_symlinks=False)
            if is_folder or is_image_name(entry.name):
                listed.append((entry.name, is_folder))
    for name, is_folder in sorted(listed):
        if is_folder:
            yield from _below(folder / name)
        else:
            yield folder / name


def _matching(pattern: Path) -> Iterator[Path]:
    # The shell, which would have replaced it, has not seen a quoted `~` either; and other than
    # `Path.glob`, this takes patterns that are absolute.
    found = sorted(glob.iglob(os.fspath(pattern.expanduser()), recursive=True))  # noqa: PTH207
    return (Path(name) for name in found if is_image_name(name) and not Path(name).is_dir())


def iter_sources(images: Images) -> Iterator[tuple[str, ImageSource]]:
    """Each image with a name to report it by: its path, or its number.

    Raises:
        UsageError: `images` is nothing that holds images.
    """
    if _is_image(images):
        images = [cast("ImageSource", images)]
    if not isinstance(images, Iterable):
        raise UsageError(
            f"Images are paths, bytes, PIL images, uint8 arrays or an iterable of those, "
            f"found {type(images).__name__}."
        )
    for number, source in enumerate(cast("Iterable[ImageSource]", images)):
        if isinstance(source, str | os.PathLike):
            yield os.fspath(source), source
        else:
            yield f"image {number}", source


def is_one(images: Images) -> bool:
    """Whether there is exactly one image, given as it is or in something that has a length."""
    return _is_image(images) or (isinstance(images, Sized) and len(images) == 1)


def _is_image(images: Images) -> bool:
    # Four axes are a batch; what has fewer is one image, or refused as one.
    batch = isinstance(images, np.ndarray) and images.ndim > 3
    image = isinstance(images, str | os.PathLike | bytes | Image.Image | np.ndarray)
    return image and not batch


def paired(
    images: Images,
    clients: str | int | Iterable[str | int],
    strengths: float | Iterable[float | None] | None,
) -> Iterator[tuple[str, ImageSource, str | int, float | None]]:
    """Each image with its name, its client and its strength: one for all, or one for each.

    Raises:
        UsageError: there is not one client, or not one strength, for each image.
    """
    given: dict[str, Iterator[Any]] = {}
    for what, values in (("client", clients), ("strength", strengths)):
        for_all = values is None or isinstance(values, str | int | float | np.number)
        given[what] = repeat(values) if for_all else iter(cast("Iterable[Any]", values))
    for name, source in iter_sources(images):
        own: list[Any] = []
        for what, each in given.items():
            # All may be endless; which of them ends first is only known when it does.
            own.append(next(each, _ENDED))
            if own[-1] is _ENDED:
                raise _more("images", what)
        client, strength = own
        yield name, source, client, strength
    for what, each in given.items():
        if not isinstance(each, repeat) and next(each, _ENDED) is not _ENDED:
            raise _more(f"{what}s", what)


_ENDED = object()


def _more(which: str, what: str) -> UsageError:
    return UsageError(f"There are more {which}: give one {what} for all, or one per image.")


def load_pixels(
    source: ImageSource, settings: Preprocessing, max_pixels: int | None = None
) -> NDArray[np.uint8]:
    """One image as the model takes it, uint8 [S, S, 3].

    Args:
        source: the image.
        settings: the bundle's.
        max_pixels: of a file, refused before it is decoded where it has more.

    Raises:
        ImageError: the image cannot be read; the message is the reason.
        UsageError: the source is nothing that can be an image.
    """
    return resize_crop(
        _as_image(source, max_pixels),
        settings.image_size,
        settings.resize_mode,
        settings.interpolation,
    )


def _as_image(source: ImageSource, max_pixels: int | None) -> Image.Image:
    if isinstance(source, str | os.PathLike):
        return decode_image(Path(source), max_pixels)
    if isinstance(source, bytes):
        return decode_image(source, max_pixels)
    if isinstance(source, Image.Image):
        try:
            return ImageOps.exif_transpose(source).convert("RGB")
        except Exception as error:  # Pillow's list of exception types is open-ended
            raise ImageError(str(error) or type(error).__name__) from error
    if isinstance(source, np.ndarray):
        return _from_array(source)
    raise UsageError(
        f"An image is a path, bytes, a PIL image or a uint8 array, found {type(source).__name__}."
    )


def _from_array(pixels: NDArray[Any]) -> Image.Image:
    channels = pixels.shape[2:] in {(), (3,), (4,)} and pixels.ndim >= 2
    if pixels.dtype != np.uint8 or not channels or 0 in pixels.shape:
        raise UsageError(
            f"An array of pixels is uint8 [height, width, 3], found {pixels.dtype} "
            f"{list(pixels.shape)}: values from 0 to 255, channels last."
        )
    return Image.fromarray(pixels).convert("RGB")
