"""The image files that a user means by a file, a folder or a pattern."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pfedmma_deploy.data.images import IMAGE_SUFFIXES, is_image_name
from pfedmma_deploy.errors import DataError

__all__ = ["find_images"]


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
        first = next(inside, None)
        if first is None:
            *others, last = IMAGE_SUFFIXES
            raise DataError(f"{what} ({', '.join(others)} or {last})")
        yield first
        yield from inside


def _below(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        listed = sorted(
            (entry.name, inner)
            for entry in entries
            # Links to folders are not followed: they may lead back here.
            if (inner := entry.is_dir(follow_symlinks=False)) or is_image_name(entry.name)
        )
    for name, inner in listed:
        if inner:
            yield from _below(folder / name)
        else:
            yield folder / name


def _matching(pattern: Path) -> Iterator[Path]:
    # The shell, which would have replaced it, has not seen a quoted `~` either; and other than
    # `Path.glob`, this takes patterns that are absolute.
    found = sorted(glob.iglob(os.fspath(pattern.expanduser()), recursive=True))  # noqa: PTH207
    return (Path(name) for name in found if is_image_name(name) and not Path(name).is_dir())
