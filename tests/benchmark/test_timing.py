"""Windows, medians and ratios by a clock of our own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pfedmma_deploy.benchmark.report import (
    Contestant,
    Windows,
    environment_lines,
    latency,
    number,
    quartiles,
    run_rounds,
    timed,
)
from tests.test_system import MACHINE


class FakeMachine:
    """Time passes only while a contestant runs; every call is written down."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def clock(self) -> float:
        return self.now

    def contestant(self, name: str, seconds: Callable[[], float], items: float) -> Contestant:
        def run() -> None:
            self.calls.append(name)
            self.now += seconds()

        return run, items


def test_rates_by_hand() -> None:
    """Two seconds for 8 images is 4 a second; half a second for 1 is 2 a second."""
    machine = FakeMachine()
    both = {
        "a": machine.contestant("a", lambda: 2.0, 8),
        "b": machine.contestant("b", lambda: 0.5, 1),
    }
    windows = run_rounds(both, rounds=3, seconds=1.0, clock=machine.clock)
    assert windows["a"].rates == [4.0, 4.0, 4.0]
    assert windows["b"].rates == [2.0, 2.0, 2.0]
    assert windows["b"].calls == [0.5] * 6
    # The first window of each is warmed up; later ones only where calls are short. Turned around.
    assert "".join(machine.calls) == "aa" + "bbb" + "bb" + "a" + "a" + "bb"


def test_short_calls_are_warmed_up_in_every_window() -> None:
    machine = FakeMachine()
    one = {"a": machine.contestant("a", lambda: 0.25, 1)}
    windows = run_rounds(one, rounds=2, seconds=2.0, clock=machine.clock)
    assert len(machine.calls) == 2 * (1 + 8)
    assert len(windows["a"].calls) == 16


def test_a_ratio_survives_a_machine_that_slows_down() -> None:
    """In every round `b` is twice as fast, while the machine becomes ten times slower."""
    machine = FakeMachine()
    slowness = iter([1.0, 1.0, 1.0, 1.0, 5.0, 5.0, 10.0, 10.0])
    pace = [1.0]

    def seconds(share: float) -> Callable[[], float]:
        def take() -> float:
            pace[0] = next(slowness)
            return share * pace[0]

        return take

    both = {name: machine.contestant(name, seconds(s), 1) for name, s in (("a", 1.0), ("b", 0.5))}
    windows = run_rounds(both, rounds=3, seconds=0.1, clock=machine.clock)
    assert windows["a"].rates == [1.0, 0.2, 0.1]
    found = timed(windows, "b", "a")["ratios"]["a"]
    assert found == {"low": 2.0, "median": 2.0, "high": 2.0}


def test_quartiles_by_hand() -> None:
    found = quartiles([4.0, 1.0, 3.0, 2.0, 5.0])
    assert found == {"low": 2.0, "median": 3.0, "high": 4.0}
    found = quartiles([1.0, 2.0, 3.0, 10.0])
    assert found == {"low": 1.75, "median": 2.5, "high": 4.75}
    assert quartiles([7.0])["high"] == 7.0


def test_few_calls_have_no_p99() -> None:
    assert latency([0.1] * 99)["p99"] is None
    found = latency([0.1] * 99 + [0.3])
    assert found["p50"] == 0.1 and found["p99"] == pytest.approx(0.102) and found["calls"] == 100


def test_fields_of_a_row_by_hand() -> None:
    windows = {
        "ours": Windows([30.0, 60.0, 90.0], [1.0]),
        "plain": Windows([20.0, 30.0, 90.0], [1.0]),
    }
    found = timed(windows, "ours", "plain")
    assert found["images_per_second"] == 60.0
    assert found["quartiles"] == [45.0, 75.0]
    # 1.5, 2 and 1: not the ratio of the medians, which is 2.
    assert found["ratio"] == 1.5 and found["peer"] == "plain"
    assert set(found["ratios"]) == {"plain"}
    # Nothing is its own peer.
    assert "ratio" not in timed(windows, "plain", "plain")


def test_cells_have_three_digits() -> None:
    assert [number(value) for value in (None, "a", 1000, 1234.5)] == ["-", "a", "1,000", "1,234"]
    assert [number(value) for value in (99.9, 9.999, 0.5, 3e-7)] == [
        "99.9",
        "10.0",
        "0.50",
        "3e-07",
    ]
    assert number(1_500_000, 1e-6) == "1.50" and number(0.0) == "0.00"


def test_the_machine_in_lines_by_hand() -> None:
    assert environment_lines(MACHINE).splitlines() == [
        "- Processor: AMD EPYC (avx2), 2 cores, 1 threads used, 25 GB",
        "- GPU: none",
        "- System: Linux x86_64, Python 3.11.7",
        "- torch 2.15.0, onnxruntime 1.31.1",
        "- Measured 2026-11-20 10:00 UTC; load of the machine before: 0.25",
    ]
