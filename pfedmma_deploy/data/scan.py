"""Which image files a folder tree holds, whatever else lies in it; large ones are remembered.

Listing a million files takes seconds, so the list is kept in the user's cache folder (`caches`). It
is proved before it is believed: it counts as long as every folder in it has the change time that it
had when it was read, because a file added, removed or renamed changes that of its folder.

A cache file that is damaged, of another format or for another folder is passed over. It can only
list names below the root that it was made for, and is never unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pfedmma_deploy.caches import cache_folder
from pfedmma_deploy.data.class_names import CLASSES_FILE
from pfedmma_deploy.data.images import is_image_name
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Skipped

MIN_IMAGES: Final = 2000
"""Smaller folders are read faster than a cache file is worth."""

_SYSTEM_FOLDERS: Final = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
# Two levels below the deepest known layout: enough to show what is there, and a bound on what
# folders that link to each other can cost.
_MAX_DEPTH: Final = 5
_FORMAT: Final = 2
# Some file systems count time in steps of two seconds: a change within the same step as the
# listing would not show.
_STEP_NS: Final = 2_000_000_000


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
    _walk(root, "", (), found)
    found.images.sort()
    found.folders.sort()
    found.skipped.sort(key=lambda skipped: skipped.path)
    return found


def _walk(folder: Path, key: str, above: tuple[tuple[int, int], ...], found: Scan) -> None:
    status = folder.stat()
    identity = status.st_dev, status.st_ino
    if identity in above:
        _skip(key, "a link back to a folder that contains it", found)
        return
    if len(above) > _MAX_DEPTH:
        _skip(key, "a folder nested too deeply, not read", found)
        return
    if not _is_printable(key, found):
        return
    # Before the folder is listed: what is added meanwhile makes the stamp stale, not wrong.
    found.stamps[key] = status.st_mtime_ns
    if key:
        found.folders.append(key)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        if not key:
            raise DataError(f"data folder {folder}: {error.strerror}") from error
        found.skipped.append(Skipped(key, f"the folder cannot be read: {error.strerror}"))
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name in _SYSTEM_FOLDERS:
            continue
        name = f"{key}/{entry.name}" if key else entry.name
        if entry.is_dir():
            _walk(Path(entry.path), name, (*above, identity), found)
        elif not is_image_name(entry.name):
            if name != CLASSES_FILE:
                found.other_files[Path(entry.name).suffix.lower() or "no suffix"] += 1
        elif not _is_printable(name, found):
            continue
        elif entry.is_file():
            found.images.append(name)
        else:
            reason = "a link to nothing" if entry.is_symlink() else "not a regular file"
            _skip(name, reason, found)


def _skip(name: str, reason: str, found: Scan) -> None:
    printable = name.encode("utf-8", "backslashreplace").decode("utf-8")
    found.skipped.append(Skipped(printable, reason))


def _is_printable(name: str, found: Scan) -> bool:
    """Whether a name is valid Unicode; else it could be neither printed nor stored as JSON."""
    try:
        name.encode()
    except UnicodeEncodeError:
        _skip(name, "its name is not valid Unicode; rename it", found)
        return False
    return True


def scan(root: Path, *, cache: bool = True) -> Scan:
    """What lies below `root`, listed now or known to be unchanged.

    Args:
        root: the folder.
        cache: False neither uses nor keeps what is remembered.

    Raises:
        DataError: as `scan_folder`.
    """
    file = cache_file(root, "list.json") if cache else None
    remembered = _read_list(file, root) if file else None
    if remembered is not None:
        return remembered
    started = time.time_ns()
    found = scan_folder(root)
    settled = max(found.stamps.values()) < started - _STEP_NS
    # What was skipped may come right without a change of any folder, as a link to nothing.
    if file and settled and not found.skipped and len(found.images) >= MIN_IMAGES:
        record = {
            "format": _FORMAT,
            "root": str(root.resolve()),
            "stamps": found.stamps,
            "images": found.images,
            "other_files": found.other_files,
        }
        write_cache(file, json.dumps(record).encode())
    return found


def cache_file(root: Path, kind: str) -> Path | None:
    """Where something about the files below `root` is kept; None where caches are off."""
    folder = cache_folder("index")
    if folder is None:
        return None
    name = hashlib.sha256(str(root.resolve()).encode(errors="surrogateescape")).hexdigest()
    return folder / f"{name[:32]}.{kind}"


def write_cache(file: Path, content: bytes) -> None:
    """All or nothing; a cache that cannot be written costs time only."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            partial = Path(folder, file.name)
            partial.write_bytes(content)
            partial.replace(file)


def _read_list(file: Path, root: Path) -> Scan | None:
    """The listing in a cache file, where it is for this folder and every folder is unchanged."""
    try:
        record = json.loads(file.read_bytes())
        stamps: dict[str, int] = record["stamps"]
        if record["format"] != _FORMAT or record["root"] != str(root.resolve()) or "" not in stamps:
            return None
        for folder, stamp in stamps.items():
            place = root / folder
            below = ".." not in place.parts and place.is_relative_to(root)
            if not below or place.stat().st_mtime_ns != stamp:
                return None
        images: list[str] = record["images"]
        for key in images:
            folder, _, name = key.rpartition("/")
            if folder not in stamps or name[:1] in ("", "."):  # no name may lead elsewhere
                return None
        other = Counter({str(kind): int(count) for kind, count in record["other_files"].items()})
        return Scan(sorted(images), sorted(filter(None, stamps)), other, stamps=stamps)
    # Whatever the file holds instead: it is listed anew.
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
