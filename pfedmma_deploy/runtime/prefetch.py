"""Items are worked on by threads ahead of time, while their results are used in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    items: Iterable[Item],
    work: Callable[[Item], Result],
    pool: ThreadPoolExecutor,
    most: int,
) -> Generator[tuple[Item, Future[Result]]]:
    """Each item with its finished work, in order; at most `most` items wait to be taken.

    The items are drawn by a thread of their own: one that comes late (a camera, a queue that
    waits for the last answer) holds up nothing that came before it. What drawing raises is raised
    here, after the items before it. When the iterator is closed or dropped, work that has not
    begun is cancelled and nothing more is drawn; an item that is being waited for at that moment
    is dropped when it comes, and never keeps the program from ending.

    A sequence of one item needs no threads, which would only delay it.
    """
    if isinstance(items, Sequence) and len(items) == 1:
        done: Future[Result] = Future()
        try:
            done.set_result(work(items[0]))
        except Exception as error:
            done.set_exception(error)
        yield items[0], done
        return
    drawn: SimpleQueue[tuple[Item, Future[Result]] | BaseException | None] = SimpleQueue()
    places = threading.Semaphore(most)
    stopped = threading.Event()

    def draw() -> None:
        end: BaseException | None = None
        try:
            for item in items:
                places.acquire()
                if stopped.is_set():
                    return
                drawn.put((item, pool.submit(work, item)))
        except BaseException as error:  # belongs to whoever takes the results
            end = error
        finally:
            drawn.put(end)

    # A daemon, because nothing can interrupt a caller's iterator that waits.
    threading.Thread(target=draw, name="pfedmma-draw", daemon=True).start()
    try:
        while (entry := drawn.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            entry[1].exception()  # waits until it is done
            places.release()
            yield entry
    finally:
        stopped.set()
        places.release()  # for a thread that waits for a place
        while not drawn.empty():
            left = drawn.get()
            if isinstance(left, tuple):
                left[1].cancel()
