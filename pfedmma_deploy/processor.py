"""What the system says of the processor."""

from __future__ import annotations

import platform
from pathlib import Path


def describe_processor() -> dict[str, str]:
    """The first processor's entries of Linux's `/proc/cpuinfo`; empty elsewhere."""
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return {}
    first = file.read_text(encoding="utf-8").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def processor_features() -> set[str]:
    """Instruction sets by Linux's names; empty where it does not say."""
    info = describe_processor()
    return set(info.get("flags", info.get("Features", "")).split())


def is_amd() -> bool:
    """Whether AMD made it; Windows says so at the end of its name."""
    return "AuthenticAMD" in describe_processor().get("vendor_id", platform.processor())
