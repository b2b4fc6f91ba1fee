"""A uvicorn connection that nobody may hold open by saying nothing."""

from __future__ import annotations

import asyncio
import contextlib
from typing import ClassVar, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE: Final = 10.0
"""Seconds from the connection, or the first byte of a later request, to the end of its head."""
MAX_SILENT: Final = 256
"""Connections without a request that are kept at once; beyond, the oldest is closed."""


class Impatient(H11Protocol):
    """Hangs up on whoever sends no head of a request, or too slowly.

    Uvicorn waits for ever for the first head, and for a later one that has begun. h11 is the strict
    parser: a request that could be read in two ways is refused.
    """

    _silent: ClassVar[dict[Impatient, asyncio.TimerHandle]] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock."""
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        """Stop the clock at a whole head; start it at the first byte of a later one."""
        super().data_received(data)
        if self._answers():
            self._settle()
        elif self not in self._silent and not self.transport.is_closing():
            self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._settle()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """At the server's end; else it would wait for everybody's farewell."""
        if self._answers():
            super().shutdown()
        else:
            self._hang_up()

    def _answers(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]

    def _start(self) -> None:
        self._silent[self] = self.loop.call_later(PATIENCE, self._hang_up)
        if len(self._silent) > MAX_SILENT:
            next(iter(self._silent))._hang_up()

    def _hang_up(self) -> None:
        self._settle()
        self.transport.abort()

    def _settle(self) -> None:
        timer = self._silent.pop(self, None)
        if timer is not None:
            timer.cancel()


def allow_many_files() -> None:
    """As many as this user may: strangers who connect would use up the usual thousand."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
