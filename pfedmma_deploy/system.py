"""The machine that this process runs on: processor, memory, libraries, and processes beside it.

Sizes and instruction sets come from Linux's /proc. psutil, which every system has a package of, is
no dependency: it knows neither the peak of the resident size on Linux nor the instruction sets.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

PACKAGES = ("pfedmma-deploy", "torch", "open_clip_torch", "onnx", "onnxruntime", "numpy", "pillow")
_ALIASES = {"onnxruntime": ("onnxruntime-gpu", "onnxruntime")}
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "asimd")
_LOOK_EVERY = 1.0
"""Seconds between two looks after the process that started this one."""


def describe_processor() -> dict[str, str]:
    """The first processor's entries of `/proc/cpuinfo`; empty where there is none."""
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
    """Whether AMD made the processor; Windows says so at the end of its name."""
    return "AuthenticAMD" in describe_processor().get("vendor_id", platform.processor())


def available_cores() -> int:
    """Logical cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes; 0 where the system does not say."""
    # Not getrusage on Linux: there a child starts at the peak of the process that started it.
    size = _status("VmHWM")
    if size is not None or sys.platform == "win32":
        return size or 0
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts in bytes, the others in kilobytes.
    return largest if sys.platform == "darwin" else largest * 1024


def resident_memory() -> int:
    """Resident size of this process now, in bytes; where only the peak is known, the peak."""
    size = _status("VmRSS")
    return peak_memory() if size is None else size


def energy_counters(root: Path = Path("/sys/class/powercap")) -> dict[Path, int]:
    """Microjoules that each processor package has used so far, by the folder of its counter.

    Linux's powercap (RAPL, of Intel and AMD). Empty where there is none or it may not be read,
    which is so for anybody but root on most machines.
    """
    found = {}
    for zone in sorted(root.glob("intel-rapl:*")):
        try:
            # Other zones are parts of a package, or the whole board with the packages in it.
            if (zone / "name").read_text("utf-8").startswith("package"):
                found[zone] = int((zone / "energy_uj").read_text("utf-8"))
        except (OSError, ValueError):
            continue
    return found


def energy_since(start: Mapping[Path, int]) -> float | None:
    """Joules since `start`, a result of `energy_counters`; None where that is empty."""
    if not start:
        return None
    total = 0
    for zone, before in start.items():
        try:
            used = int((zone / "energy_uj").read_text("utf-8")) - before
            # The counter starts again at zero when it is full.
            full = int((zone / "max_energy_range_uj").read_text("utf-8")) if used < 0 else 0
        except (OSError, ValueError):
            return None
        total += used + full
    return total / 1e6


def _status(key: str) -> int | None:
    """A size of this process in bytes, from `/proc/self/status`; None where there is none."""
    file = Path("/proc/self/status")
    match = re.search(rf"{key}:\s+(\d+) kB", file.read_text("utf-8")) if file.exists() else None
    return None if match is None else int(match[1]) * 1024


@dataclass(frozen=True)
class Environment:
    """What measured figures depend on beside the program; no host names, no paths."""

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


def describe_environment(threads: int, *, gpu: str | None = None) -> Environment:
    """This machine, now; `gpu` is the name of the GPU that is measured."""
    from datetime import UTC, datetime

    flags = processor_features()
    memory = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    versions = {}
    for name in PACKAGES:
        found = [v for alias in _ALIASES.get(name, (name,)) if (v := package_version(alias))]
        if found:
            versions[name] = found[0]
    return Environment(
        cpu=describe_processor().get("model name") or platform.processor() or platform.machine(),
        instructions=tuple(name for name in _INSTRUCTIONS if name in flags),
        cores=available_cores(),
        threads=threads,
        memory=memory,
        gpu=gpu,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions=versions,
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def package_version(name: str) -> str | None:
    """The version of an installed distribution, None where there is none."""
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def process_pool(count: int) -> ProcessPoolExecutor:
    """Fresh processes, which end when this one does, however it ends."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    return ProcessPoolExecutor(
        count,
        # Spawned, because a fork of a process that has run torch may hang.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_end_with,
        initargs=(os.getpid(),),
    )


def _end_with(parent: int) -> None:
    """Watch the process `parent`: one that is killed cannot tell its workers to stop."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_EVERY)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()
