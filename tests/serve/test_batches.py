"""Whatever waits goes through the model together; nobody's slow image holds up another's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pfedmma_deploy.errors import ImageError
from pfedmma_deploy.serve.batches import Batches, BusyError, Pixels, View


class Model:
    """Stands for a classifier: features are the first pixel, the client and the strength."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.free = threading.Event()
        self.free.set()
        self.slow = threading.Event()

    def decode(self, image: bytes, max_pixels: int) -> Pixels:
        if image == b"broken":
            raise ImageError("damaged")
        if image == b"slow":
            self.slow.wait(20)
        return np.full((2, 2, 3), len(image), np.uint8)

    def embed_pixels(self, pixels: Sequence[Pixels], views: Sequence[View]) -> Any:
        assert self.free.wait(20)
        self.calls.append(len(pixels))
        rows = zip(pixels, views, strict=True)
        return np.array([[image[0, 0, 0], *view] for image, view in rows], np.float32)


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def pixels(value: int) -> Pixels:
    return np.full((2, 2, 3), value, np.uint8)


def test_what_waits_is_one_batch_of_all_clients() -> None:
    async def play() -> None:
        model: Any = Model()
        batches = Batches(1, batch_size=4)
        model.free.clear()
        first = asyncio.create_task(batches.features(model, pixels(9), [(1, 1.0)]))
        await until(lambda: batches._working is not None and not batches._waiting)
        # Five come while the model is busy: four of them fit into the next batch.
        later = [
            asyncio.create_task(batches.features(model, pixels(n), [(n, 0.5)])) for n in range(5)
        ]
        await until(lambda: len(batches._waiting) == 5)
        model.free.set()
        assert (await first).tolist() == [[9, 1, 1]]
        assert [(await one).tolist() for one in later] == [[[n, n, 0.5]] for n in range(5)]
        assert model.calls == [1, 4, 1]

    asyncio.run(play())


def test_several_views_of_an_image_are_rows_of_one_batch() -> None:
    async def play() -> None:
        model: Any = Model()
        batches = Batches(1)
        found = await batches.features(model, b"abc", [(5, 1.0), (0, 1.0)])
        assert found.tolist() == [[3, 5, 1], [3, 0, 1]]
        assert model.calls == [2]

    asyncio.run(play())


def test_a_slow_or_broken_image_holds_up_nobody() -> None:
    async def play() -> None:
        model: Any = Model()
        batches = Batches(1)
        slow = asyncio.create_task(batches.features(model, b"slow", [(1, 1.0)]))
        broken = asyncio.create_task(batches.features(model, b"broken", [(1, 1.0)]))
        others = [batches.features(model, b"x", [(2, 1.0)]) for _ in range(8)]
        found = await asyncio.gather(*others)
        assert not slow.done()
        assert all(one.tolist() == [[1, 2, 1]] for one in found)
        with pytest.raises(ImageError, match="damaged"):
            await broken
        model.slow.set()
        assert (await slow).tolist() == [[4, 1, 1]]

    asyncio.run(play())


def test_who_cancels_leaves_the_queue() -> None:
    async def play() -> None:
        model: Any = Model()
        batches = Batches(1)
        model.free.clear()
        first = asyncio.create_task(batches.features(model, pixels(1), [(1, 1.0)]))
        await until(lambda: batches._working is not None and not batches._waiting)
        gone = asyncio.create_task(batches.features(model, pixels(2), [(2, 1.0)]))
        stays = asyncio.create_task(batches.features(model, pixels(3), [(3, 1.0)]))
        await until(lambda: len(batches._waiting) == 2)
        gone.cancel()
        await asyncio.sleep(0)
        model.free.set()
        assert (await stays).tolist() == [[3, 3, 1]]
        assert (await first).tolist() == [[1, 1, 1]]
        assert model.calls == [1, 1]

    asyncio.run(play())


def test_a_full_queue_says_so_at_once() -> None:
    async def play() -> None:
        batches = Batches(1, queue=3)
        with batches.places(2):
            with (
                pytest.raises(
                    BusyError,
                    match="The queue is full: 2 of 3 images are in it, 2 more were sent; try again",
                ),
                batches.places(2),
            ):
                pass
            with batches.places(1):
                assert batches.is_full
        assert batches.places_taken == 0

    asyncio.run(play())


def test_nobody_waits_longer_than_the_patience() -> None:
    async def play() -> None:
        model: Any = Model()
        batches = Batches(1, patience=0.05)
        model.free.clear()
        with pytest.raises(BusyError, match=r"An image waited longer than 0\.05 seconds"):
            await batches.features(model, pixels(1), [(1, 1.0)])
        model.free.set()

    asyncio.run(play())


def test_two_models_are_never_mixed() -> None:
    async def play() -> None:
        old: Any = Model()
        new: Any = Model()
        batches = Batches(1)
        old.free.clear()
        asked = [batches.features(model, pixels(1), [(1, 1.0)]) for model in (old, old, new, old)]
        tasks = [asyncio.create_task(one) for one in asked]
        await asyncio.sleep(0.02)
        old.free.set()
        await asyncio.gather(*tasks)
        assert (sum(old.calls), new.calls) == (3, [1])

    asyncio.run(play())


def test_a_defect_fails_its_batch_and_not_the_next() -> None:
    async def play() -> None:
        model: Any = Model()
        batches = Batches(1)
        with pytest.raises(TypeError):
            await batches.features(model, pixels(1), [None])  # type: ignore[list-item]
        assert (await batches.features(model, pixels(1), [(1, 1.0)])).tolist() == [[1, 1, 1]]

    asyncio.run(play())
