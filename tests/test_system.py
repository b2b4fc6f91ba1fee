"""What is said of the machine and what is not, on every system; workers end with their parent."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pfedmma_deploy import system
from pfedmma_deploy.system import (
    Environment,
    describe_environment,
    describe_processor,
    energy_counters,
    energy_since,
    is_amd,
    process_pool,
    processor_features,
)

LINUX = "processor: 0\nvendor_id\t: {}\nflags\t: fpu avx2 avx512f\n\nprocessor: 1\nflags: x\n"


def pretend(monkeypatch: pytest.MonkeyPatch, text: str | None, name: str = "") -> None:
    class File:
        def __init__(self, path: str) -> None:
            assert path == "/proc/cpuinfo"

        def exists(self) -> bool:
            return text is not None

        def read_text(self, encoding: str) -> str:
            assert text is not None
            return text

    monkeypatch.setattr(system, "Path", File)
    monkeypatch.setattr(platform, "processor", lambda: name)


@pytest.mark.parametrize(("maker", "expected"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_linux(monkeypatch: pytest.MonkeyPatch, maker: str, expected: bool) -> None:
    pretend(monkeypatch, LINUX.format(maker))
    assert describe_processor()["processor"] == "0"
    assert processor_features() == {"fpu", "avx2", "avx512f"}
    assert is_amd() is expected


def test_linux_on_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "processor\t: 0\nFeatures\t: fp asimd\n", "aarch64")
    assert processor_features() == {"fp", "asimd"}
    assert not is_amd()


def test_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, None, "AMD64 Family 25 Model 33 Stepping 0, AuthenticAMD")
    assert is_amd()
    pretend(monkeypatch, None, "Intel64 Family 6 Model 158 Stepping 10, GenuineIntel")
    assert not is_amd()
    assert processor_features() == set()


def test_this_machine() -> None:
    assert Path("/proc/cpuinfo").exists() == bool(describe_processor())


MACHINE = Environment(
    cpu="AMD EPYC",
    instructions=("avx2",),
    cores=2,
    threads=1,
    memory=25_000_000_000,
    gpu=None,
    system="Linux x86_64",
    python="3.11.7",
    versions={"torch": "2.15.0", "onnxruntime": "1.31.1"},
    load=0.25,
    date="2026-11-20 10:00 UTC",
)


def test_machines_have_names_for_files() -> None:
    assert MACHINE.machine == "amd-epyc-2-cores"
    assert replace(MACHINE, gpu="NVIDIA H200").machine == "nvidia-h200"


def test_this_machine_without_names_and_paths() -> None:
    found = describe_environment(3)
    assert found.threads == 3 and found.cores >= 1 and found.cpu
    assert {"torch", "onnxruntime", "numpy"} <= set(found.versions)
    text = json.dumps(found.to_dict())
    assert platform.node() not in text and str(Path.home()) not in text


def test_memory_grows_with_what_is_held() -> None:
    """In a fresh process: this one may hold freed memory that is used again."""
    program = """
import numpy as np
from pfedmma_deploy.system import peak_memory, resident_memory
before = resident_memory()
held = np.ones(8_000_000)
print(before, resident_memory(), peak_memory(), held.nbytes)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    before, after, peak, held = map(int, done.stdout.split())
    assert after - before > 0.8 * held
    assert peak >= before + 0.8 * held


PROGRAM = """
import os, sys, time
from pfedmma_deploy.system import process_pool
from tests.test_system import say_and_sleep

if __name__ == "__main__":
    with process_pool(1) as pool:
        pool.submit(say_and_sleep).result()
"""


def say_and_sleep() -> None:
    print(os.getpid(), flush=True)
    time.sleep(60)


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"


def test_results_and_errors_come_back() -> None:
    with process_pool(2) as pool:
        assert pool.submit(abs, -3).result() == 3
        with pytest.raises(ZeroDivisionError):
            pool.submit(divmod, 1, 0).result()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_killed_process_leaves_no_workers() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as main:
        assert main.stdout is not None
        worker = int(main.stdout.readline())
        assert is_running(worker)
        main.send_signal(signal.SIGKILL)
    until = time.monotonic() + 20
    while is_running(worker) and time.monotonic() < until:
        time.sleep(0.2)
    assert not is_running(worker)


def zone(root: Path, number: int, name: str, used: int | str) -> Path:
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{used}\n")
    (folder / "max_energy_range_uj").write_text("10000000\n")
    return folder


def test_energy_of_all_packages(tmp_path: Path) -> None:
    """2 J of one package; the other's counter went from 9.5 J over its end at 10 J to 1 J."""
    first = zone(tmp_path, 0, "package-0", 3_000_000)
    second = zone(tmp_path, 1, "package-1", 9_500_000)
    zone(tmp_path, 2, "psys", 7)  # the whole board: the packages are in it
    start = energy_counters(tmp_path)
    assert start == {first: 3_000_000, second: 9_500_000}
    zone(tmp_path, 0, "package-0", 5_000_000)
    zone(tmp_path, 1, "package-1", 1_000_000)
    assert energy_since(start) == pytest.approx(2.0 + 1.5)


def test_energy_that_is_not_told(tmp_path: Path) -> None:
    assert energy_counters(tmp_path) == {} and energy_since({}) is None
    folder = zone(tmp_path, 0, "package-0", "not a number")
    assert energy_counters(tmp_path) == {}
    assert energy_since({folder: 1}) is None
