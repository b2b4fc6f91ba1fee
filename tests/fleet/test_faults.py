"""Faults of sites, server and network: the result is that of a simulation with the same absences.

Every process is real, and stopped, killed or cut off where it hurts (`tests.fleet.stages`).
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pfedmma_deploy.store.run import Run
from tests.fleet.play import Play, absent

Make = Callable[..., Play]
ALL = ["site-a", "site-b", "site-c"]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes a federation that ends with the test."""
    torch.set_num_threads(1)
    plays: list[Play] = []

    def new(*arguments: str, **options: Any) -> Play:
        play = Play(tmp_path, **options)
        plays.append(play)
        play.new(*arguments)
        return play

    yield new
    for play in plays:
        play.close()


def test_three_sites_have_the_bits_of_one_process(make: Make) -> None:
    play = make()
    play.start_all()
    play.end_all()
    assert play.counted == [ALL] * 4
    play.require_same(play.simulate())
