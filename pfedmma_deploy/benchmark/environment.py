"""The machine and the libraries that figures were measured with; no host names, no paths."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pfedmma_deploy.processor import describe_processor, processor_features

__all__ = [
    "Environment",
    "available_cores",
    "describe_environment",
]

PACKAGES = ("pfedmma-deploy", "torch", "open_clip_torch", "onnx", "onnxruntime", "numpy", "pillow")
_ALIASES = {"onnxruntime": ("onnxruntime-gpu", "onnxruntime")}
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "asimd")


@dataclass(frozen=True)
class Environment:
    """What figures depend on beside the program."""

    cpu: str
    """Model name as the processor says it."""
    instructions: tuple[str, ...]
    """Vector extensions that matter here, by Linux's names; empty where it does not say."""
    cores: int
    """That this process may use."""
    threads: int
    """That the measured libraries were told to use."""
    memory: int | None
    """Bytes, None where the system does not say."""
    gpu: str | None
    system: str
    python: str
    versions: dict[str, str]
    load: float | None
    """Processes that were running before the measurement, mean over a minute: 0 is a quiet
    machine. None where the system does not say."""
    date: str
    """UTC, when the measurement began."""

    @property
    def machine(self) -> str:
        """A name for files: `amd-epyc-2-cores`, `nvidia-h200`."""
        name = self.gpu or f"{self.cpu} {self.cores} cores"
        return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "instructions": list(self.instructions)}


def describe_environment(
    threads: int, *, gpu: str | None = None, packages: Sequence[str] = PACKAGES
) -> Environment:
    """This machine, now; `gpu` is the name of the GPU that is measured."""
    flags = processor_features()
    found = {name: _version(name) for name in packages}
    return Environment(
        cpu=describe_processor().get("model name") or platform.processor() or platform.machine(),
        instructions=tuple(name for name in _INSTRUCTIONS if name in flags),
        cores=available_cores(),
        threads=threads,
        memory=_memory(),
        gpu=gpu,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions={name: text for name, text in found.items() if text},
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> int | None:
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _version(name: str) -> str | None:
    for alias in _ALIASES.get(name, (name,)):
        try:
            return version(alias)
        except PackageNotFoundError:
            continue
    return None
