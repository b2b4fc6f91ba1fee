"""Work in processes of its own."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor

LOOK_EVERY = 1.0
"""Seconds between two looks after the process that started this one."""


def process_pool(count: int) -> ProcessPoolExecutor:
    """Fresh processes, which end when this one does, however it ends.

    Spawned, because a fork of a process that has run torch may hang. A process that is killed
    cannot tell its workers; they would go on for as long as their task takes.
    """
    return ProcessPoolExecutor(
        count,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_end_with,
        initargs=(os.getpid(),),
    )


def _end_with(parent: int) -> None:
    def look() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_EVERY)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()
