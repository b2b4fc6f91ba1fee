"""A server on this machine: the port, TLS, and the end."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvicorn

from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.listening import Impatient, allow_many_files
from pfedmma_deploy.runtime.providers import usable_cores
from pfedmma_deploy.serve.app import make_app
from pfedmma_deploy.serve.asking import Service
from pfedmma_deploy.serve.batches import Batches
from pfedmma_deploy.serve.gate import Limits, is_this_machine
from pfedmma_deploy.serve.live import Live
from pfedmma_deploy.serve.metrics import LOG, Metrics

GRACE: Final = 30
"""Seconds that requests have to be answered after the server was told to end."""


@dataclass(frozen=True)
class Address:
    """Where to listen."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free one."""
    certificate: Path | None = None
    """For TLS, with its `key`; PEM."""
    key: Path | None = None

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        return is_this_machine(self.host)

    def url(self, port: int) -> str:
        """How it is asked, on the port that it got."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.certificate else 'http'}://{host}:{port}"

    def require_safe(self, has_keys: bool) -> None:
        """Raises `UsageError` where anybody could ask for everything."""
        if not has_keys and not self.is_local:
            raise UsageError(
                f"--host {self.host} lets other machines ask for every client: make keys with "
                "`pfedmma key NAME --clients 3 --keys keys.toml` and give --keys keys.toml, or "
                "leave out --host."
            )


def make_service(
    bundle: Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    keys: Path | None = None,
    batch_size: int = 32,
    queue: int = 256,
    limits: Limits | None = None,
) -> Service:
    """Everything behind the routes, loaded and warm.

    Args:
        bundle: folder that `pfedmma export` made.
        device: as for `Classifier.load`.
        threads: likewise.
        keys: the file of keys; None lets everybody ask for everything.
        batch_size: images of one call of the model, at most.
        queue: images between arrival and answer, at most.
        limits: of one request.

    Raises:
        BundleError, DeviceError, UsageError: what is wrong with the bundle, the device or the keys.
    """
    metrics, limits = Metrics(), limits or Limits()
    live = Live(bundle, device, threads, keys, on_change=metrics.changed)
    batches = Batches(
        threads or usable_cores(),
        batch_size=batch_size,
        queue=queue,
        max_pixels=limits.max_pixels,
        on_batch=metrics.batch.observe,
    )
    return Service(live, batches, metrics, limits)


def serve(
    service: Service, address: Address, on_ready: Callable[[str], None] = lambda url: None
) -> None:
    """Answer requests until Ctrl-C or SIGTERM, and those that have begun to the end.

    Args:
        service: from `make_service`.
        address: where to listen.
        on_ready: told the URL once the port is open.

    Raises:
        UsageError: the port cannot be opened, the certificate cannot be used, or anybody could ask
            for everything.
    """
    server = make_server(service, address)
    allow_many_files()
    with open_port(address) as port:
        on_ready(address.url(port.getsockname()[1]))
        server.run(sockets=[port])


def make_server(service: Service, address: Address) -> uvicorn.Server:
    """Uvicorn, ready to run on a port of `open_port`; raises like `serve`."""
    address.require_safe(service.live.keys is not None)
    config = uvicorn.Config(
        make_app(service, only_local=service.live.keys is None),
        ssl_certfile=address.certificate,
        ssl_keyfile=None if address.key is None else str(address.key),
        http=Impatient,
        # Not another one where uvloop happens to be installed.
        loop="asyncio",
        ws="none",
        lifespan="on",
        proxy_headers=False,
        access_log=False,
        server_header=False,
        log_config=None,
        # What strangers send is not to be seen in the log; ours has what is needed.
        log_level=logging.CRITICAL + 1,
        timeout_graceful_shutdown=GRACE,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"--tls {address.certificate} {address.key} cannot be used ({error}): give a "
            "certificate and its key, both PEM."
        ) from error
    return uvicorn.Server(config)


def open_port(address: Address) -> socket.socket:
    """A socket that listens there; raises `UsageError` where it cannot be opened."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return socket.create_server(
            (address.host, address.port), family=family, backlog=2048, reuse_port=False
        )
    except OSError as error:
        raise UsageError(
            f"Port {address.port} of {address.host} cannot be opened ({error.strerror}): name "
            "another with --port."
        ) from error


def log_to_stderr() -> None:
    """Print the log of requests, one JSON object a line."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
