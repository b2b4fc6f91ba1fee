"""Workers end with whoever started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pfedmma_deploy.processes import process_pool

PROGRAM = """
import os, sys, time
from pfedmma_deploy.processes import process_pool
from tests.test_processes import say_and_sleep

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
