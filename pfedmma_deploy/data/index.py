"""What was found out about a large folder, kept for next time: its list of images, which are good.

Listing a million files takes seconds and reading them takes minutes, so both are remembered in the
user's cache folder (`caches`), and both are proved before they are believed:

- the list counts as long as every folder in it has the change time that it had when it was read;
  a file added, removed or renamed changes that of its folder;
- an image counts as read as long as its path, size and change times are the same.

A cache file that is damaged, of another format or for another folder is passed over. It can only
list names below the root that it was made for, and is never unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.caches import cache_folder
from pfedmma_deploy.data.folders import Scan, scan_folder

__all__ = ["MIN_IMAGES", "Index"]

MIN_IMAGES: Final = 2000
"""Smaller folders are read faster than a cache file is worth."""
Marks = NDArray[np.uint64]
"""One number per file."""
_FORMAT: Final = 1
# Some file systems count time in steps of two seconds: a change within the same step as the
# listing would not show.
_STEP_NS: Final = 2_000_000_000


class Index:
    """Lists folders and remembers them.

    Args:
        enabled: False neither reads nor writes the cache.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self._folder = cache_folder("index") if enabled else None

    def scan(self, root: Path) -> Scan:
        """What lies below `root`, listed now or known to be unchanged. Raises `DataError`."""
        file = self._file(root, "list.json")
        remembered = _read_scan(file, root) if file else None
        if remembered is not None:
            return remembered
        started = time.time_ns()
        found = scan_folder(root)
        settled = max(found.stamps.values()) < started - _STEP_NS
        # What was skipped may come right without a change of any folder, as a link to nothing.
        if file and settled and not found.skipped and len(found.images) >= MIN_IMAGES:
            _write(file, json.dumps(_to_record(root, found)).encode())
        return found

    def marks(self, root: Path, keys: Sequence[str]) -> Marks | None:
        """What tells the files `keys` below `root` from any other state of them; 0 where absent.

        To be taken before they are read. None where nothing is remembered.
        """
        if self._folder is None or len(keys) < MIN_IMAGES:
            return None
        return _marks(root, keys)

    def is_good(self, root: Path, marks: Marks) -> NDArray[np.bool_]:
        """Which of the files were readable when last read, and have not changed."""
        file = self._file(root, "good.npy")
        good = _read_marks(file) if file and file.is_file() else np.empty(0, np.uint64)
        known: NDArray[np.bool_] = np.isin(marks, good) & (marks != 0)
        return known

    def remember_good(self, root: Path, marks: Marks) -> None:
        """Note the marks of all files below `root` that could be read."""
        file = self._file(root, "good.npy")
        if file is not None:
            buffer = BytesIO()
            np.save(buffer, np.unique(marks[marks != 0]), allow_pickle=False)
            _write(file, buffer.getvalue())

    def _file(self, root: Path, kind: str) -> Path | None:
        if self._folder is None:
            return None
        name = hashlib.sha256(str(root.resolve()).encode(errors="surrogateescape")).hexdigest()
        return self._folder / f"{name[:32]}.{kind}"


def _marks(root: Path, keys: Iterable[str]) -> Marks:
    """64 bits of a hash of each file's path, size and change times."""
    marks = []
    base = f"{root}/"
    for key in keys:
        try:
            # A Path for each of a million files takes longer than the call itself.
            status = os.stat(base + key)  # noqa: PTH116
        except OSError:
            marks.append(b"\0" * 8)
            continue
        text = f"{key}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}"
        marks.append(hashlib.blake2b(text.encode(), digest_size=8).digest())
    return np.frombuffer(b"".join(marks), np.uint64)


def _to_record(root: Path, found: Scan) -> dict[str, Any]:
    names: dict[str, list[str]] = {}
    for key in found.images:
        folder, _, name = key.rpartition("/")
        names.setdefault(folder, []).append(name)
    return {
        "format": _FORMAT,
        "root": str(root.resolve()),
        "stamps": found.stamps,
        "images": names,
        "other_files": found.other_files,
    }


def _read_scan(file: Path, root: Path) -> Scan | None:
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
        return Scan(
            images=sorted(_keys(record["images"], stamps)),
            folders=sorted(folder for folder in stamps if folder),
            other_files=Counter({str(k): int(n) for k, n in record["other_files"].items()}),
            stamps=stamps,
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _keys(names: dict[str, list[str]], stamps: dict[str, int]) -> list[str]:
    """Paths of the images. Raises `ValueError` for a name that would lead elsewhere."""
    keys: list[str] = []
    for folder, of_folder in names.items():
        if folder not in stamps or any("/" in name or name[:1] in ("", ".") for name in of_folder):
            raise ValueError(folder)
        keys += [f"{folder}/{name}" for name in of_folder] if folder else of_folder
    return keys


def _read_marks(file: Path) -> Marks:
    try:
        marks = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        marks = None
    if not isinstance(marks, np.ndarray) or marks.dtype != np.uint64 or marks.ndim != 1:
        return np.empty(0, np.uint64)
    return marks


def _write(file: Path, content: bytes) -> None:
    """All or nothing; a cache that cannot be written costs time only."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=file.parent)
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(content)
            Path(name).replace(file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError:
        return
