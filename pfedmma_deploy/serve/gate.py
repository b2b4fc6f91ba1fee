"""In front of the routes: who is let in, how much is read of a body and how long that may take.

Everything here is decided by the head of a request where that is possible, before its body is read.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import re
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pfedmma_deploy.serve.batches import Batches
from pfedmma_deploy.serve.keys import EVERYTHING, NOTHING, Access
from pfedmma_deploy.serve.live import Live
from pfedmma_deploy.serve.metrics import Metrics, log

OPEN: Final = frozenset({"/", "/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready"})
"""Paths that need no key: they tell nothing of clients."""
OPEN_BELOW: Final = "/swagger/"
"""What the documentation's page is made of."""
ONCE: Final = ("host", "content-length", "transfer-encoding", "authorization")
"""Headers that, said twice, could be read in two ways."""
_PORT: Final = re.compile(r":[0-9]*$")
RETRY: Final = (b"retry-after", b"1")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for; beyond, it is refused with a sentence."""

    body_bytes: int = 32 << 20
    """Of one body."""
    all_body_bytes: int = 512 << 20
    """Of all bodies that are in memory at once."""
    body_seconds: float = 30.0
    """Until a body has arrived."""
    images: int = 64
    """In one request."""
    max_pixels: int = 25_000_000
    """Of one image."""
    classes: int = 256
    """Names typed in one request, or texts."""
    text_length: int = 200
    """Characters of such a name, or 2,000 of a text."""


class RefusedError(Exception):
    """A request that gets a status and a sentence instead of an answer."""

    def __init__(self, status: int, sentence: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers


class Gate:
    """Around the application: the last that sees an answer, the first that sees a request."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        live: Live,
        batches: Batches,
        metrics: Metrics,
        limits: Limits,
        only_local: bool,
    ) -> None:
        """With `only_local`, requests to other names of this machine than localhost are refused.

        A page in a browser could otherwise reach a server without keys by a name of its own that
        points here.
        """
        self.app, self._live, self._batches = app, live, batches
        self._metrics, self._limits, self._only_local = metrics, limits, only_local
        self._in_memory = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, status, group = time.perf_counter(), 0, "-"

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        body = _Body(receive, self)
        try:
            headers = single_headers(scope)
            access = self._admit(scope["path"], headers)
            group = access.group
            scope.setdefault("state", {})["access"] = access
            body.expect(headers)
            await self.app(scope, body.receive, counted)
        except RefusedError as refusal:
            if not status:
                await refuse(counted, refusal)
        except Exception as error:
            where = "".join(traceback.format_exception(error))
            log("defect", logging.ERROR, route=route_of(scope), error=where)
            if not status:
                sentence = "Something went wrong in the server; its log says what."
                await refuse(counted, RefusedError(500, sentence))
        finally:
            self._in_memory -= body.arrived
            # Who hung up before the answer began is counted as nginx does it.
            self._metrics.answered(route_of(scope), status or 499, group, started)

    def _admit(self, path: str, headers: Mapping[str, str]) -> Access:
        """Whose request this is; raises `RefusedError`."""
        if self._only_local and not is_this_machine(_PORT.sub("", headers.get("host", ""))):
            raise RefusedError(
                421, "This server has no keys and answers to the name localhost alone."
            )
        keys = self._live.keys
        if keys is None:
            return EVERYTHING
        if path in OPEN or path.startswith(OPEN_BELOW):
            return NOTHING
        scheme, _, key = headers.get("authorization", "").partition(" ")
        access = keys.find(key.strip()) if scheme.lower() == "bearer" else None
        if access is None:
            raise RefusedError(
                401,
                "A key is needed: send the header `Authorization: Bearer KEY`.",
                (b"www-authenticate", b"Bearer"),
            )
        if path == "/metrics" and not access.metrics:
            raise RefusedError(403, "This key does not open /metrics.")
        return access

    def take(self, count: int, body: int) -> None:
        """Account for `count` bytes of a body that has `body` now; raises `RefusedError`."""
        self._in_memory += count
        if body > self._limits.body_bytes:
            most = self._limits.body_bytes
            raise RefusedError(
                413, f"A body has at most {most:,} bytes: send fewer or smaller images."
            )
        if self._in_memory > self._limits.all_body_bytes:
            raise RefusedError(503, "Too much is being sent at once; try again in a second.", RETRY)

    def require_room(self, length: int) -> None:
        """Raises `RefusedError` where a body of that length, by its head, cannot be taken."""
        if length and self._batches.is_full:
            raise RefusedError(503, "The queue is full; try again in a second.", RETRY)
        if length > self._limits.body_bytes:
            self.take(0, length)

    @property
    def body_seconds(self) -> float:
        """Until a body has arrived."""
        return self._limits.body_seconds


class _Body:
    """A request's body as it arrives: counted, and not waited for longer than is allowed."""

    def __init__(self, receive: Receive, gate: Gate) -> None:
        self._receive, self._gate = receive, gate
        self.arrived = 0
        self._complete = False
        self._deadline = asyncio.get_running_loop().time() + gate.body_seconds

    def expect(self, headers: Mapping[str, str]) -> None:
        """Refuse what the head announces, where it is too much or could be read in two ways."""
        length = headers.get("content-length")
        if length is not None and "transfer-encoding" in headers:
            raise RefusedError(400, "A body has a length or comes in chunks, not both.")
        if headers.get("content-encoding", "identity") != "identity":
            raise RefusedError(415, "Bodies are taken as they are, not compressed.")
        self._gate.require_room(int(length) if length and length.isdecimal() else 0)

    async def receive(self) -> Message:
        """As ASGI's `receive`."""
        if self._complete:
            # From here on it only tells whether the caller is still there.
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise RefusedError(
                408, f"The body did not arrive within {self._gate.body_seconds:g} seconds."
            ) from None
        if message["type"] == "http.request":
            count = len(message.get("body", b""))
            self.arrived += count
            self._gate.take(count, self.arrived)
            self._complete = not message.get("more_body", False)
        return message


def is_this_machine(host: str) -> bool:
    """Whether a name or an address, in brackets or not, is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def single_headers(scope: Scope) -> dict[str, str]:
    """Headers by name in lower case; raises `RefusedError` for what may not be said twice."""
    found: dict[str, str] = {}
    for raw, value in scope["headers"]:
        name = raw.decode("latin-1").lower()
        if name in found and name in ONCE:
            raise RefusedError(400, f"The header {name} is there twice.")
        found[name] = value.decode("latin-1")
    return found


def route_of(scope: Scope) -> str:
    """The pattern that the path matched, such as `/v2/models/{name}`; never the path itself."""
    return str(getattr(scope.get("route"), "path", "other"))


async def refuse(send: Send, refusal: RefusedError) -> None:
    """Answer with a sentence, and hang up: the rest of the body is not wanted."""
    body = json.dumps({"error": refusal.sentence}).encode()
    headers: list[Any] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *refusal.headers,
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
