"""From a question to features: whose models it is for, and its images through the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request

from pfedmma_deploy.errors import ImageError, UsageError
from pfedmma_deploy.runtime.bundle import checked_strength
from pfedmma_deploy.runtime.manifest import ZERO_SHOT, ClientInfo
from pfedmma_deploy.serve.batches import Batches, Features, View
from pfedmma_deploy.serve.gate import Limits, RefusedError
from pfedmma_deploy.serve.keys import Access
from pfedmma_deploy.serve.live import Live, Model
from pfedmma_deploy.serve.metrics import Metrics

Result = TypeVar("Result")


@dataclass(frozen=True)
class Service:
    """Everything that the routes share."""

    live: Live
    batches: Batches
    metrics: Metrics
    limits: Limits


@dataclass(frozen=True)
class Caller:
    """One request: the model that it began with, and what its key lets it see."""

    service: Service
    model: Model
    access: Access
    request: Request

    @classmethod
    def of(cls, service: Service, request: Request) -> Caller:
        """Who sends `request`."""
        return cls(service, service.live.model, request.state.access, request)

    def clients(self) -> list[ClientInfo]:
        """The clients that the key opens, zero-shot first."""
        first, *others = self.model.classifier.clients
        return [first, *(client for client in others if self.access.sees(client.id))]

    def index(self, client: str | None) -> int:
        """A client's index by its id; default the only one that is visible, else zero-shot.

        Raises:
            RefusedError: there is none, or the key does not open it: both in the same words.
        """
        if client is None:
            others = self.clients()[1:]
            return others[0].index if len(others) == 1 else 0
        index = self.model.indices.get(client)
        if index is None or not (client == ZERO_SHOT or self.access.sees(client)):
            raise RefusedError(404, "There is no such client for you; GET /v1/clients lists them.")
        return index

    def require_indices(self, indices: Sequence[int]) -> None:
        """Raises `RefusedError` unless the key opens all clients of these indices."""
        known = self.model.classifier.clients
        for index in set(indices):
            if not 0 <= index < len(known) or (index and not self.access.sees(known[index].id)):
                raise RefusedError(
                    404, "There is no such client number for you; GET /v1/clients lists them."
                )

    def view(self, index: int, strength: float | None) -> View:
        """A client at a strength, its own where none is given; raises `RefusedError`."""
        manifest = self.model.classifier.manifest
        if strength is None:
            return index, manifest.clients[index].default_strength
        try:
            strength = checked_strength(strength)
        except UsageError as error:
            raise RefusedError(422, str(error)) from None
        if strength != 1 and manifest.strength is None:
            raise RefusedError(422, f"This model answers at strength 1 alone, found {strength:g}.")
        return index, strength

    def require_texts(self) -> None:
        """Raises `RefusedError` where the bundle has no text tower."""
        if not self.model.has_texts:
            raise RefusedError(
                422,
                "This bundle has no text tower: it takes no typed classes and no texts, and "
                "strengths 0 and 1 alone.",
            )

    async def features(
        self, images: Sequence[bytes | NDArray[np.uint8]], views: Sequence[Sequence[View]]
    ) -> list[Features | ImageError]:
        """Of each image its features [views, D], or why it cannot be read; call within `places`.

        Raises:
            BusyError: an image waited too long.
            ClientDisconnect: the caller has hung up; its images have left the queue.
        """
        batches, classifier = self.service.batches, self.model.classifier

        async def ask() -> list[Any]:
            asked = zip(images, views, strict=True)
            calls = [batches.features(classifier, image, own) for image, own in asked]
            return await asyncio.gather(*calls, return_exceptions=True)

        found = await unless_gone(self.request, ask())
        for each in found:
            if isinstance(each, BaseException) and not isinstance(each, ImageError):
                raise each
        skipped = sum(isinstance(each, ImageError) for each in found)
        self.service.metrics.images.labels(self.access.group).inc(len(found) - skipped)
        self.service.metrics.skipped.labels(self.access.group).inc(skipped)
        return found


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the caller hangs up.

    Raises:
        ClientDisconnect: the caller has.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
