"""The server's port: TLS, and who is sent away before anything is read.

Only `PATHS` are answered, only to those whom `admit` knows, and nobody may keep a connection
without saying anything.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pfedmma_deploy.errors import FleetError
from pfedmma_deploy.fleet.flower import PATHS, PUSHES, SMALL_BODY
from pfedmma_deploy.listening import Impatient, allow_many_files


@dataclass
class Contact:
    """What the server knows of a site's connection."""

    node_id: int
    public_key: bytes
    process: str = ""
    """Which process of the site is talking; empty before the first and after a goodbye."""
    last_seen: float | None = None
    """`time.monotonic()` of its last request; None before the first."""
    received: int = 0
    """HTTP bytes from the site, without TLS."""
    sent: int = 0
    """HTTP bytes to the site, without TLS."""
    budget: int = 0
    """Bytes that it may still send in answer to what it was sent."""
    excess: int = 0
    """Bytes of an answer larger than any can be, which was not read; 0 where there was none."""


class Gate:
    """In front of Flower's routes: who nobody knows is sent away before anything is read."""

    def __init__(
        self, app: ASGIApp, admit: Callable[[str, Mapping[str, str]], tuple[int, Contact | None]]
    ) -> None:
        """`admit` has an HTTP status for a path and headers, and knows whose request it is."""
        self.app = app
        self.admit = admit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        if path not in PATHS or scope["method"] != "POST":
            await _refuse(send, 404)
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        # What is said twice could be read in two ways; a body of unknown length has no limit.
        if len(headers) < len(scope["headers"]) or "transfer-encoding" in headers:
            await _refuse(send, 400)
            return
        status, contact = self.admit(path, headers)
        if status != 200 or contact is None:
            await _refuse(send, status)
            return
        length, arrived = int(headers["content-length"]), 0
        contact.received += _head_size(scope["headers"]) + length

        async def take() -> Message:
            nonlocal arrived
            message = await receive()
            arrived += len(message.get("body", b""))
            return message

        async def count(message: Message) -> None:
            contact.sent += _head_size(message.get("headers", [])) + len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, take, count)
        finally:
            if path in PUSHES and length > SMALL_BODY and arrived < length:
                # The connection broke: the site may send it again.
                contact.budget += length


@contextlib.contextmanager
def listening(app: ASGIApp, host: str, port: int, certificate: Path, key: Path) -> Iterator[int]:
    """Answer requests while the block runs; yields the port, which was chosen where `port` is 0.

    Raises:
        FleetError: the port cannot be opened.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        ssl_certfile=certificate,
        ssl_keyfile=str(key),
        http=Impatient,
        # Not another one where uvloop happens to be installed.
        loop="asyncio",
        ws="none",
        lifespan="off",
        access_log=False,
        server_header=False,
        log_config=None,
        # Else whoever reaches the port writes into the operator's terminal.
        log_level=logging.CRITICAL + 1,
        timeout_graceful_shutdown=5,
    )
    allow_many_files()
    server = uvicorn.Server(config)
    thread = threading.Thread(target=_serve, args=(server,), daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.02)
    if not server.started:
        raise FleetError(
            f"port {port} of {host} cannot be opened: another program may be using it. Name "
            "another with --listen HOST:PORT."
        )
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(timeout=10)


def _serve(server: uvicorn.Server) -> None:
    # Uvicorn ends a program whose port is taken; only this thread is to end.
    with contextlib.suppress(SystemExit):
        server.run()


async def _refuse(send: Send, status: int) -> None:
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _head_size(headers: Any) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers)
