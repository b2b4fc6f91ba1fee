"""How much memory this process takes."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes; 0 where the system does not say.

    On Linux from `/proc`: `getrusage` starts a child at the size of the process that started it.
    """
    size = _status("VmHWM")
    if size is not None or sys.platform == "win32":
        return size or 0
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def resident_memory() -> int:
    """Resident size of this process now, in bytes; where only the peak is known, the peak."""
    size = _status("VmRSS")
    return peak_memory() if size is None else size


def _status(key: str) -> int | None:
    """A size of this process in bytes, from Linux's `/proc`; None elsewhere."""
    file = Path("/proc/self/status")
    match = re.search(rf"{key}:\s+(\d+) kB", file.read_text("utf-8")) if file.exists() else None
    return None if match is None else int(match[1]) * 1024
