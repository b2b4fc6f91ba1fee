"""How many cores there really are, on machines made of a few files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pfedmma_deploy.runtime import cpus
from pfedmma_deploy.runtime.cpus import usable_cores


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four cores of two hyper-threads, all usable, without limits."""
    for number in range(8):
        topology = tmp_path / f"cpu/cpu{number}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{number % 4},{number % 4 + 4}\n")
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "own").write_text("0::/shop/job\n")
    monkeypatch.setattr(cpus, "CPUS", tmp_path / "cpu")
    monkeypatch.setattr(cpus, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cpus, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_hyper_threads_count_once(machine: Path) -> None:
    assert usable_cores() == 4


@pytest.mark.parametrize(("mask", "cores"), [({0}, 1), ({0, 4}, 1), ({0, 1, 4}, 2), ({9}, 1)])
def test_the_mask_counts(
    machine: Path, monkeypatch: pytest.MonkeyPatch, mask: set[int], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: mask)
    assert usable_cores() == cores


@pytest.mark.parametrize(
    ("limits", "cores"),
    [
        ({"shop/job": "max 100000"}, 4),
        ({"shop/job": "150000 100000"}, 2),
        ({"shop/job": "300000 100000", "shop": "50000 100000"}, 1),
        ({"": "200000 100000"}, 2),  # as seen inside a container
        ({"shop/job": "800000 100000"}, 4),
        ({"shop/job": "nonsense"}, 4),
    ],
)
def test_quotas(machine: Path, limits: dict[str, str], cores: int) -> None:
    for group, text in limits.items():
        write(machine / "cgroup" / group / "cpu.max", text + "\n")
    assert usable_cores() == cores


def test_quotas_of_the_first_version(machine: Path) -> None:
    write(machine / "own", "4:memory:/\n3:cpu,cpuacct:/docker/1\n")
    write(machine / "cgroup/cpu/cpu.cfs_quota_us", "200000\n")
    write(machine / "cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert usable_cores() == 2
    write(machine / "cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    assert usable_cores() == 4


def test_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


def test_no_control_groups(machine: Path) -> None:
    (machine / "own").unlink()
    assert usable_cores() == 4
