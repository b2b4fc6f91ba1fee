"""Where things are kept that can be made again: one folder per kind, below one place."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

VARIABLE = "PFEDMMA_CACHE"
"""Environment variable: another place for caches, or `off`."""
KINDS = {
    "prefixes": "cached activations of the frozen blocks (training, evaluation)",
    "index": "lists of large image folders",
    "facts": "content hashes and sizes of images",
    "tensorrt": "TensorRT's compiled engines",
}
"""What each kind of cache holds."""


def cache_folder(kind: str) -> Path | None:
    """The folder for one kind of cache, which may not exist yet; None where caches are off.

    `$PFEDMMA_CACHE/<kind>`, or else below the system's place for caches: `~/.cache/pfedmma/<kind>`
    on Linux (`$XDG_CACHE_HOME` in place of `~/.cache` where that is set).
    """
    own = os.environ.get(VARIABLE)
    if own is not None:
        return None if own.strip().lower() in ("", "off") else Path(own) / kind
    # Imported here: `predict` comes by without a cache in most cases, and starts in 0.3 s.
    import platformdirs

    return platformdirs.user_cache_path("pfedmma", appauthor=False) / kind


def folder_size(folder: Path | None) -> tuple[int, int]:
    """Number and bytes of the files below a folder; links are not followed."""
    count = total = 0
    for parent, _, files in os.walk(folder or ""):
        for name in files:
            path = Path(parent, name)
            # A cache may be cleaned while it is looked at.
            with contextlib.suppress(OSError):
                total += path.lstat().st_size
                count += 1
    return count, total
