"""How many CPUs this process may really use, which is often fewer than the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["usable_cores"]

CPUS = Path("/sys/devices/system/cpu")
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Physical cores that this process may run on, at least 1.

    On Linux the CPU mask (`taskset`, Kubernetes' static CPUs) and the cgroup's quota (`docker run
    --cpus`) count, which ONNX Runtime's own default ignores; two hyper-threads of a core count
    once, since they share the units that multiply matrices. Elsewhere all logical CPUs count.
    """
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = {_core(cpu) for cpu in os.sched_getaffinity(0)}
    return max(1, math.ceil(min(len(cores), _quota())))


def _core(cpu: int) -> str:
    """A name that hyper-threads of one core share; the CPU's number where nothing is known."""
    try:
        return (CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota() -> float:
    """CPU seconds per second that the cgroup and those around it allow; infinite without limit."""
    try:
        lines = OWN_CGROUP.read_text().splitlines()
    except OSError:
        return math.inf
    least = math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        root = CGROUPS if not controllers else CGROUPS / "cpu"
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Inside a container the path may be the host's, and the limits then stand at the root.
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            least = min(least, _limit(folder))
            if folder == root:
                break
    return least


def _limit(folder: Path) -> float:
    """The quota of one cgroup, version 2 (`cpu.max`) or 1 (`cpu.cfs_*`)."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        unlimited = quota in {"max", "-1"}
        return math.inf if unlimited else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
