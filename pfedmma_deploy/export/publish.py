"""A bundle appears under its name only when it is complete, and replaces its forerunner at once."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.runtime.bundle import MANIFEST
from pfedmma_deploy.runtime.manifest import FORMAT

__all__ = ["require_replaceable", "staged"]

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def require_replaceable(out: Path) -> None:
    """Raises `ExportError` where `out` is something else than free, empty or an older bundle."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        is_bundle = isinstance(manifest, dict) and manifest.get("format") == FORMAT
    except (OSError, ValueError):
        is_bundle = False
    if not is_bundle:
        raise ExportError(
            f"{out} exists and is not an exported model: nothing was overwritten; "
            "choose another --out, or remove it yourself."
        )


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """An empty folder beside `out` that takes its name when the block ends without an error.

    An older bundle of that name is replaced in one step where the system can exchange two folders
    (Linux), else in two. After an error nothing is left behind, and the older bundle is untouched.
    """
    out = out.resolve()
    require_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        folder.chmod(0o755)  # mkdtemp's is for its owner alone
        yield folder
        _flush(folder)
        require_replaceable(out)
        _take_name(folder, out)
        _flush(out.parent)
    finally:
        # Holds the older bundle after an exchange, unfinished files after an error.
        shutil.rmtree(folder, ignore_errors=True)


def _take_name(folder: Path, out: Path) -> None:
    if not out.exists():
        folder.rename(out)
    elif not _exchange(folder, out):
        older = folder.with_name(f"{folder.name}.older")
        out.rename(older)
        try:
            folder.rename(out)
        except OSError:
            older.rename(out)
            raise
        shutil.rmtree(older)


def _exchange(left: Path, right: Path) -> bool:
    """Swap two folders in one step; False where the system cannot."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    code = rename(
        _AT_FDCWD, os.fsencode(left), _AT_FDCWD, os.fsencode(right), ctypes.c_uint(_RENAME_EXCHANGE)
    )
    return int(code) == 0


def _flush(folder: Path) -> None:
    """Make the names in a folder durable."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
