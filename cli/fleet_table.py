"""How a federation stands, as a table: once, or drawn anew while the server runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .output import Output, Row, framed

if TYPE_CHECKING:
    from pfedmma_deploy.fleet.status import FleetStatus

COLUMNS = ("Site", "State", "Images", "Last seen", "Rounds", "Refused", "Received", "Sent", "Why")


def show(output: Output, status: FleetStatus) -> None:
    """Print the table once, as a result."""
    output.table(COLUMNS, _rows(status), _title(status))


@contextmanager
def live_table(output: Output) -> Iterator[Callable[[FleetStatus], None]]:
    """A table on stderr that each call draws anew; in a pipe, a line for each change."""
    if output.quiet:
        yield lambda status: None
        return
    if not sys.stderr.isatty():
        yield _Lines(output)
        return
    # rich takes a tenth of a second to load: only where there is a terminal to draw on.
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), transient=True, auto_refresh=False) as live:
        yield lambda status: live.update(
            framed(COLUMNS, _rows(status), _title(status)), refresh=True
        )


class _Lines:
    """What changed since the last look, a line each."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self._said: dict[str, str] = {}

    def __call__(self, status: FleetStatus) -> None:
        lines = {"": _title(status)}
        for site in status.sites.values():
            if site.state in ("here", "not here", "set aside") or site.reason:
                reason = f" ({site.reason})" if site.reason else ""
                lines[site.id] = f"  {site.id}: {site.state}{reason}"
        for key, line in lines.items():
            if self._said.get(key) != line:
                self.output.note(line)
        self._said |= lines


def _rows(status: FleetStatus) -> list[Row]:
    rows: list[Row] = []
    for site in status.sites.values():
        seen = site.seen_seconds_ago
        rows.append(
            [
                site.id,
                site.state,
                site.images,
                None if seen is None else f"{seen:.0f} s ago",
                site.rounds,
                site.refused,
                f"{site.bytes_received:,}",
                f"{site.bytes_sent:,}",
                site.reason or None,
            ]
        )
    return rows


def _title(status: FleetStatus) -> str:
    remark = f" ({status.remark})" if status.remark else ""
    return f"{status.name}: {status.stage}{remark}, round {status.round} of {status.rounds}"
