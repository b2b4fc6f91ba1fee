"""Where things are kept that can be made again: one folder per kind, below one place."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "PFEDMMA_CACHE"
"""Environment variable: another place for caches, or `off`."""


def cache_folder(kind: str) -> Path | None:
    """The folder for one kind of cache, which may not exist yet; None where caches are off.

    `$PFEDMMA_CACHE/<kind>`, or else `~/.cache/pfedmma/<kind>` (below `$XDG_CACHE_HOME`, or
    `%LOCALAPPDATA%`, where that is set).
    """
    own = os.environ.get(VARIABLE)
    if own is not None:
        return None if own.strip().lower() in ("", "off") else Path(own) / kind
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache") / "pfedmma" / kind
