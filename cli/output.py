"""What a command prints: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

from pfedmma_deploy.progress import Progress, Silent

Row = Sequence[str | float | int | None]


class Output:
    """Where a command's words go.

    With `as_json` stdout carries exactly one JSON object and nothing else. `quiet` leaves the
    results and drops notes and progress.
    """

    def __init__(self, stdout: TextIO, *, as_json: bool, quiet: bool) -> None:
        self.stdout = stdout
        self.as_json = as_json
        self.quiet = quiet
        self.progress: Progress = Silent()

    def say(self, text: str) -> None:
        """A line of the result, for people."""
        if not self.as_json:
            print(text, file=self.stdout)

    def note(self, text: str) -> None:
        """A line beside the result: hints, warnings, what is being done."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def table(self, columns: Sequence[str], rows: Iterable[Row], title: str = "") -> None:
        """Rows under headings: framed on a terminal, aligned plain text in a pipe."""
        cells = [[_cell(value) for value in row] for row in rows]
        if self.as_json:
            return
        if self.stdout.isatty():
            _print_framed(self.stdout, columns, cells, title)
        else:
            _print_plain(self.stdout, columns, cells, title)

    def result(self, values: Mapping[str, Any]) -> None:
        """The result for programs: one JSON object, when `--json` asks for it."""
        if self.as_json:
            print(json.dumps(values, ensure_ascii=False, allow_nan=False), file=self.stdout)


@contextmanager
def open_output(*, as_json: bool, quiet: bool) -> Iterator[Output]:
    """An `Output` whose progress bars are drawn while the block runs.

    With `as_json`, what libraries print meanwhile goes to stderr.
    """
    output = Output(sys.stdout, as_json=as_json, quiet=quiet)
    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        if quiet or not sys.stderr.isatty():
            output.progress = Silent() if quiet else _Notes()
            yield output
            return
        from .progress import Bars

        with Bars() as bars:
            output.progress = bars
            yield output


class _Notes(Silent):
    """No bars where nobody sees them move; notes stay."""

    def note(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)


def _cell(value: str | float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(".", "", 1).replace(",", "").lstrip("+-").isdigit()


def _print_plain(
    stdout: TextIO, columns: Sequence[str], cells: Sequence[Sequence[str]], title: str
) -> None:
    if title:
        print(title, file=stdout)
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    right = [bool(cells) and all(_is_number(row[i]) for row in cells) for i in range(len(columns))]
    for row in [columns, *cells]:
        parts = [
            text.rjust(width) if align else text.ljust(width)
            for text, width, align in zip(row, widths, right, strict=True)
        ]
        print("  ".join(parts).rstrip(), file=stdout)


def _print_framed(
    stdout: TextIO, columns: Sequence[str], cells: Sequence[Sequence[str]], title: str
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=stdout)
    if title:
        # Not the table's own title, which would be folded to the width of a narrow table.
        console.print(Text(title, style="bold"))
    table = Table()
    for index, name in enumerate(columns):
        numbers = bool(cells) and all(_is_number(row[index]) for row in cells)
        table.add_column(Text(name), justify="right" if numbers else "left")
    for row in cells:
        table.add_row(*map(Text, row))
    console.print(table)
