"""Which image files a folder tree holds, whatever else lies in it."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pfedmma_deploy.data.images import is_image_name
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Skipped

__all__ = ["CLASSES_FILE", "Scan", "scan_folder"]

CLASSES_FILE: Final = "classes.txt"

_SYSTEM_FOLDERS: Final = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
# Two levels below the deepest known layout: enough to show what is there, and a bound on what
# folders that link to each other can cost.
_MAX_DEPTH: Final = 5
_BAD_NAME: Final = "its name is not valid Unicode; rename it"


@dataclass(slots=True)
class Scan:
    """Everything visible below a root; paths are relative to it, with forward slashes."""

    images: list[str] = field(default_factory=list)
    """Ascending."""
    folders: list[str] = field(default_factory=list)
    """Ascending."""
    other_files: Counter[str] = field(default_factory=Counter)
    """Number of files that are no images, by lower-case suffix."""
    skipped: list[Skipped] = field(default_factory=list)
    """Images and folders that cannot be used, with the reason."""
    stamps: dict[str, int] = field(default_factory=dict)
    """Time of the last change of each folder's list of names, in ns; "" is the root."""


def scan_folder(root: Path) -> Scan:
    """Lists a folder tree. Hidden names (a leading dot) and folders of the system are left out.

    Links to folders are followed, except back into a folder that contains them.

    Raises:
        DataError: `root` is absent, is no folder or cannot be read.
    """
    if not root.is_dir():
        reason = "it is a file" if root.exists() else "it does not exist"
        raise DataError(f"data folder {root}: {reason}; expected a folder of images")
    found = Scan()
    _walk(root, "", (_identity(root, "", found),), found)
    found.images.sort()
    found.folders.sort()
    found.skipped.sort(key=lambda skipped: skipped.path)
    return found


def _walk(folder: Path, key: str, above: tuple[tuple[int, int], ...], found: Scan) -> None:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        if not key:
            raise DataError(f"data folder {folder}: {error.strerror}") from error
        found.skipped.append(Skipped(key, f"the folder cannot be read: {error.strerror}"))
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        name = f"{key}/{entry.name}" if key else entry.name
        if not entry.is_dir():
            _add_file(entry, name, found)
        elif entry.name not in _SYSTEM_FOLDERS:
            _add_folder(entry, name, above, found)


def _add_folder(
    entry: os.DirEntry[str], key: str, above: tuple[tuple[int, int], ...], found: Scan
) -> None:
    identity = _identity(entry, key, found)
    if identity in above:
        found.skipped.append(Skipped(_printable(key), "a link back to a folder that contains it"))
    elif len(above) > _MAX_DEPTH:
        found.skipped.append(Skipped(_printable(key), "a folder nested too deeply, not read"))
    elif _printable(key) != key:
        found.skipped.append(Skipped(_printable(key), _BAD_NAME))
    else:
        found.folders.append(key)
        _walk(Path(entry.path), key, (*above, identity), found)


def _add_file(entry: os.DirEntry[str], key: str, found: Scan) -> None:
    if not is_image_name(entry.name):
        if key != CLASSES_FILE:
            found.other_files[Path(entry.name).suffix.lower() or "no suffix"] += 1
    elif _printable(key) != key:
        found.skipped.append(Skipped(_printable(key), _BAD_NAME))
    elif not entry.is_file():
        reason = "a link to nothing" if entry.is_symlink() else "not a regular file"
        found.skipped.append(Skipped(key, reason))
    else:
        found.images.append(key)


def _identity(entry: os.DirEntry[str] | Path, key: str, found: Scan) -> tuple[int, int]:
    status = entry.stat()
    # Before the folder is listed: what is added meanwhile makes the stamp stale, not wrong.
    found.stamps[key] = status.st_mtime_ns
    return status.st_dev, status.st_ino


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
