"""What is written about the machine, and what is not."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from pfedmma_deploy.benchmark.environment import (
    Environment,
    describe_environment,
)
from pfedmma_deploy.benchmark.report import environment_lines

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


def test_lines_by_hand() -> None:
    assert environment_lines(MACHINE).splitlines() == [
        "- Processor: AMD EPYC (avx2), 2 cores, 1 threads used, 25 GB",
        "- GPU: none",
        "- System: Linux x86_64, Python 3.11.7",
        "- torch 2.15.0, onnxruntime 1.31.1",
        "- Measured 2026-11-20 10:00 UTC; load of the machine before: 0.25",
    ]


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
from pfedmma_deploy.memory import peak_memory, resident_memory
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
