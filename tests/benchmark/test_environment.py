"""The machine, as a report says it."""

from __future__ import annotations

from pfedmma_deploy.benchmark.report import environment_lines
from tests.test_system import MACHINE


def test_lines_by_hand() -> None:
    assert environment_lines(MACHINE).splitlines() == [
        "- Processor: AMD EPYC (avx2), 2 cores, 1 threads used, 25 GB",
        "- GPU: none",
        "- System: Linux x86_64, Python 3.11.7",
        "- torch 2.15.0, onnxruntime 1.31.1",
        "- Measured 2026-11-20 10:00 UTC; load of the machine before: 0.25",
    ]
