"""A server in a thread, and what is sent to it."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from pfedmma_deploy.serve.asking import Service
from pfedmma_deploy.serve.server import Address, make_server, open_port
from tests.runtime.waiting import wait_until

QUICKSTART = Path(__file__).parents[2] / "exports" / "quickstart"


def photo(seed: int = 0, size: tuple[int, int] = (48, 40), kind: str = "PNG") -> bytes:
    """The file of a random image."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def files(*images: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    """Images as a form has them."""
    return [("images", (f"{number}.png", image)) for number, image in enumerate(images)]


class Caller(httpx.Client):
    """Asks again where the connection was reset under the answer.

    That can happen to whoever still sends a body that the server has refused by its head.
    """

    def request(self, *arguments: Any, **options: Any) -> httpx.Response:
        """See `httpx.Client`."""
        for _ in range(3):
            try:
                return super().request(*arguments, **options)
            except httpx.ReadError:
                continue
        return super().request(*arguments, **options)


@contextmanager
def served(service: Service) -> Iterator[httpx.Client]:
    """A caller of a server that runs in a thread."""
    address = Address(port=0)
    server = make_server(service, address)
    with open_port(address) as port:
        thread = threading.Thread(target=server.run, args=([port],), daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        with httpx.Client(base_url=address.url(port.getsockname()[1]), timeout=60) as client:
            yield client
        server.should_exit = True
        thread.join(20)


def bearer(key: str) -> dict[str, str]:
    """The header that carries a key."""
    return {"authorization": f"Bearer {key}"}
