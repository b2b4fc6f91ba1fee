"""Waiting for other threads without a fixed pause."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(reached: Callable[[], bool], seconds: float = 20) -> None:
    """Returns as soon as `reached` says so, and fails after `seconds`."""
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.001)
