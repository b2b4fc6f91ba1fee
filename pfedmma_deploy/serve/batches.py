"""The queue between requests and the model: whenever it is free, it takes what waits.

No timer holds an image back. A lone caller is answered at once; under load a batch grows by itself,
because requests gather while the batch before is computed. Images join the queue decoded, so one
that is slow or broken holds up nobody else's batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.errors import PfedmmaError
from pfedmma_deploy.runtime.classifier import Classifier

Features = NDArray[np.float32]
Pixels = NDArray[np.uint8]
View = tuple[int, float]
"""A client's index and strength."""
Result = TypeVar("Result")

EXTRA_READERS: Final = 2
"""Threads that decode, beyond the cores: one large image leaves others a thread."""


class BusyError(PfedmmaError):
    """The queue is full, or an image waited too long; to be tried again later."""


@dataclass(eq=False)
class _Waiting:
    """One decoded image and who looks at it."""

    classifier: Classifier
    pixels: Pixels
    views: Sequence[View]
    features: asyncio.Future[Features]


class Batches:
    """Images of all requests on their way through one model; lives in one event loop."""

    def __init__(
        self,
        cores: int,
        *,
        batch_size: int = 32,
        queue: int = 256,
        patience: float = 30.0,
        max_pixels: int = 25_000_000,
        on_batch: Callable[[int], None] = lambda rows: None,
    ) -> None:
        """An empty queue.

        Args:
            cores: CPU cores for decoding.
            batch_size: rows of one call of the model, at most; an image that several clients look
                at is a row for each.
            queue: images between arrival and answer, at most.
            patience: seconds that an image may take from arrival to answer.
            max_pixels: of one image file, at most.
            on_batch: told the rows of each call of the model.
        """
        self.batch_size, self.queue, self.patience = batch_size, queue, patience
        self.places_taken = 0
        """Images between arrival and answer."""
        self._max_pixels, self._on_batch = max_pixels, on_batch
        self._waiting: deque[_Waiting] = deque()
        self._working: asyncio.Task[None] | None = None
        self._readers = ThreadPoolExecutor(cores + EXTRA_READERS, thread_name_prefix="decode")
        # One call at a time: the session itself uses all cores.
        self._model = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._texts = ThreadPoolExecutor(1, thread_name_prefix="texts")

    @property
    def is_full(self) -> bool:
        """Whether no further image is taken."""
        return self.places_taken >= self.queue

    @contextmanager
    def places(self, count: int) -> Iterator[None]:
        """Room for `count` images while the block runs.

        Raises:
            BusyError: there is not that much.
        """
        if self.places_taken + count > self.queue:
            raise BusyError(
                f"The queue is full: {self.places_taken} of {self.queue} images are in it, "
                f"{count} more were sent; try again in a second."
            )
        self.places_taken += count
        try:
            yield
        finally:
            self.places_taken -= count

    async def features(
        self, classifier: Classifier, image: bytes | Pixels, views: Sequence[View]
    ) -> Features:
        """Features [len(views), D] of one image, a file's bytes or pixels; call within `places`.

        Cancelled, it leaves the queue.

        Raises:
            ImageError: the file cannot be read, or is too large.
            BusyError: it took longer than `patience`.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.patience):
                if isinstance(image, bytes):
                    image = await loop.run_in_executor(
                        self._readers, classifier.decode, image, self._max_pixels
                    )
                item = _Waiting(classifier, image, views, loop.create_future())
                self._waiting.append(item)
                if self._working is None:
                    self._working = loop.create_task(self._work())
                return await item.features
        except TimeoutError:
            raise BusyError(
                f"An image waited longer than {self.patience:g} seconds: try again later."
            ) from None

    async def with_texts(self, work: Callable[[], Result]) -> Result:
        """What needs the text tower, in a thread of its own; call within `places`.

        Raises:
            BusyError: it took longer than `patience`.
        """
        try:
            async with asyncio.timeout(self.patience):
                return await asyncio.get_running_loop().run_in_executor(self._texts, work)
        except TimeoutError:
            raise BusyError(
                f"Names waited longer than {self.patience:g} seconds to be read: try again later."
            ) from None

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while batch := self._take():
                try:
                    features = await loop.run_in_executor(self._model, _compute, batch)
                except Exception as error:
                    for item in batch:
                        if not item.features.done():
                            item.features.set_exception(error)
                    continue
                self._on_batch(len(features))
                start = 0
                for item in batch:
                    end = start + len(item.views)
                    # Who is gone by now has cancelled.
                    if not item.features.done():
                        item.features.set_result(features[start:end])
                    start = end
        finally:
            self._working = None

    def _take(self) -> list[_Waiting]:
        """The oldest images of one model, as many as a batch holds; empty where none waits."""
        batch: list[_Waiting] = []
        rows = 0
        while self._waiting:
            item = self._waiting[0]
            if not item.features.done():
                other = batch and item.classifier is not batch[0].classifier
                if other or (batch and rows + len(item.views) > self.batch_size):
                    break
                batch.append(item)
                rows += len(item.views)
            self._waiting.popleft()
        return batch

    def close(self) -> None:
        """End the threads; what has begun is finished."""
        for pool in (self._readers, self._model, self._texts):
            pool.shutdown(wait=False, cancel_futures=True)


def _compute(batch: Sequence[_Waiting]) -> Features:
    """Features of all rows of a batch, in order."""
    pixels: list[Pixels] = []
    views: list[View] = []
    for item in batch:
        pixels += [item.pixels] * len(item.views)
        views += item.views
    return batch[0].classifier.embed_pixels(pixels, views)
