"""Threads that work ahead: in order, bounded, and gone when nobody listens any more."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pfedmma_deploy.runtime.prefetch import prefetch
from tests.runtime.waiting import wait_until


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def drawing() -> int:
    """How many threads draw from an iterable."""
    return sum(thread.name == "pfedmma-draw" for thread in threading.enumerate())


def test_results_come_in_order_whichever_is_done_first(pool: ThreadPoolExecutor) -> None:
    second = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert second.wait(20)
        if number == 1:
            second.set()
        return number * 10

    found = [(item, future.result()) for item, future in prefetch(range(5), work, pool, 4)]
    assert found == [(0, 0), (1, 10), (2, 20), (3, 30), (4, 40)]


def test_failed_work_is_a_result(pool: ThreadPoolExecutor) -> None:
    futures = [future for _, future in prefetch([1, 0, 2], lambda n: 6 // n, pool, 2)]
    assert [futures[0].result(), futures[2].result()] == [6, 3]
    assert isinstance(futures[1].exception(), ZeroDivisionError)


def test_one_item_needs_no_threads() -> None:
    with ThreadPoolExecutor(1) as closed:
        pass
    ((item, future),) = prefetch(["a"], str.upper, closed, 3)
    assert (item, future.result()) == ("a", "A")
    ((_, failed),) = prefetch([0], lambda n: 1 // n, closed, 3)
    assert isinstance(failed.exception(), ZeroDivisionError)


def test_no_more_is_drawn_than_may_wait(pool: ThreadPoolExecutor) -> None:
    taken: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            taken.append(len(taken))
            yield taken[-1]

    results = prefetch(endless(), str, pool, 3)
    assert taken == [], "nothing is drawn before the first result is asked for"
    assert next(results)[1].result() == "0"
    # One taken, three wait, one is in the hand of the thread.
    wait_until(lambda: len(taken) >= 5)
    assert len(taken) == 5
    results.close()
    wait_until(lambda: drawing() == 0)
    assert len(taken) == 5


def test_what_drawing_raises_comes_after_what_was_drawn(pool: ThreadPoolExecutor) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    results = prefetch(broken(), str, pool, 3)
    assert next(results)[1].result() == "1"
    with pytest.raises(OSError, match="gone"):
        next(results)
    wait_until(lambda: drawing() == 0)


@pytest.mark.parametrize("how", ["close", "drop", "raise"])
def test_nothing_hangs_when_nobody_listens(pool: ThreadPoolExecutor, how: str) -> None:
    started = threading.Semaphore(0)
    let_go = threading.Event()

    def work(number: int) -> int:
        started.release()
        assert number == 0 or let_go.wait(20)
        return number

    results = prefetch(range(100), work, pool, 10)
    next(results)
    for _ in range(3):
        assert started.acquire(timeout=20)
    if how == "close":
        results.close()
    elif how == "drop":
        del results
        gc.collect()
    else:
        with pytest.raises(RuntimeError, match="stop"):
            results.throw(RuntimeError("stop"))
    let_go.set()
    wait_until(lambda: drawing() == 0)
    # The two that had begun are finished, the others were cancelled.
    assert not started.acquire(timeout=0.05)


def test_an_iterable_that_waits_is_left_behind(pool: ThreadPoolExecutor) -> None:
    more, closed = threading.Event(), threading.Event()

    def slow() -> Iterator[int]:
        try:
            yield 1
            more.wait(20)
            yield 2
        finally:
            closed.set()

    results = prefetch(slow(), str, pool, 3)
    next(results)
    results.close()
    assert not closed.is_set(), "it still waits, and nobody waits for it"
    more.set()
    assert closed.wait(20)
    wait_until(lambda: drawing() == 0)
