"""What a command prints: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO

from pfedmma_deploy.progress import Item, Progress, Silent

if TYPE_CHECKING:
    from rich.console import Group

Row = Sequence[str | float | int | None]
ACCURACIES = {
    "local": "Local",
    "base": "Base",
    "novel": "Novel",
    "all": "All",
    "hm2": "HM2",
    "hm3": "HM3",
}
"""Headings of the figures of an `Accuracy`."""


class Output:
    """Where a command's words go.

    With `as_json` stdout carries exactly one JSON object and nothing else. `quiet` leaves the
    results and drops notes and progress.
    """

    def __init__(
        self, stdout: TextIO, *, as_json: bool, quiet: bool, verbose: bool = False
    ) -> None:
        self.stdout = stdout
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose
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
        if not self.as_json:
            if self.stdout.isatty():
                from rich.console import Console

                Console(file=self.stdout).print(framed(columns, rows, title))
            else:
                _print_plain(self.stdout, columns, _cells(rows), title)

    def result(self, values: Mapping[str, Any]) -> None:
        """The result for programs: one JSON object, when `--json` asks for it."""
        if self.as_json:
            print(json.dumps(values, ensure_ascii=False, allow_nan=False), file=self.stdout)


@contextmanager
def open_output(*, as_json: bool, quiet: bool, verbose: bool = False) -> Iterator[Output]:
    """An `Output` whose progress bars are drawn while the block runs.

    With `as_json`, what libraries print meanwhile goes to stderr.
    """
    # Made before the redirection below: the JSON object goes to the real stdout.
    output = Output(sys.stdout, as_json=as_json, quiet=quiet, verbose=verbose)
    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        if quiet or not sys.stderr.isatty():
            output.progress = Silent() if quiet else _Notes()
            yield output
            return
        with closing(_Bars()) as bars:
            output.progress = bars
            yield output


class _Notes(Silent):
    """No bars where nobody sees them move; notes stay."""

    def note(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)


class _Bars:
    """Bars on stderr: what is counted, how many of how many, the rate and the time left."""

    def __init__(self) -> None:
        # rich takes a tenth of a second to load: only where there is a terminal to draw on.
        from rich import progress
        from rich.console import Console

        self._bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )

    def track(self, items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
        """The same items; a bar moves as they are taken and goes when they are used up."""
        self._bars.start()
        number = self._bars.add_task(label, total=total, rate="")
        task = next(task for task in self._bars.tasks if task.id == number)
        try:
            for item in items:
                yield item
                self._bars.update(number, advance=1, rate=_rate(task.finished_speed or task.speed))
        finally:
            self._bars.remove_task(number)
            if not self._bars.tasks:
                # Results are printed without a live display around them.
                self._bars.stop()

    def note(self, message: str) -> None:
        """A line above the bars that stays."""
        from rich.text import Text

        self._bars.console.print(Text(message))

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._bars.stop()


def _rate(speed: float | None) -> str:
    """Items a second, or seconds an item where that is slow."""
    if not speed:
        return ""
    return f"{speed:.0f}/s" if speed >= 1 else f"{1 / speed:.1f} s each"


def _cells(rows: Iterable[Row]) -> list[list[str]]:
    return [[_cell(value) for value in row] for row in rows]


def _cell(value: str | float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _aligned_right(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[bool]:
    """Which columns hold nothing but numbers; none does in a table without rows."""
    found = []
    for index in range(len(columns)):
        is_numeric = bool(cells)
        for row in cells:
            digits = row[index].replace(".", "", 1).replace(",", "").lstrip("+-")
            is_numeric = is_numeric and (row[index] == "-" or digits.isdigit())
        found.append(is_numeric)
    return found


def _print_plain(
    stdout: TextIO, columns: Sequence[str], cells: Sequence[Sequence[str]], title: str
) -> None:
    if title:
        print(title, file=stdout)
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    right = _aligned_right(columns, cells)
    for row in [columns, *cells]:
        line = []
        for text, width, is_right in zip(row, widths, right, strict=True):
            line.append(text.rjust(width) if is_right else text.ljust(width))
        print("  ".join(line).rstrip(), file=stdout)


def framed(columns: Sequence[str], rows: Iterable[Row], title: str = "") -> Group:
    """Rows under headings, for rich to draw on a terminal; columns of numbers to the right."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    cells = _cells(rows)
    table = Table()
    for name, is_right in zip(columns, _aligned_right(columns, cells), strict=True):
        table.add_column(Text(name), justify="right" if is_right else "left")
    for row in cells:
        table.add_row(*map(Text, row))
    # Not the table's own title, which would be folded to the width of a narrow table.
    return Group(Text(title, style="bold"), table) if title else Group(table)


def print_accuracies(
    output: Output, rows: Mapping[str, Mapping[str, float | None]], title: str
) -> None:
    """A row of accuracies in percent per name, and the gain of the last over the first."""
    first, *_, last = rows.values()
    lines: list[Row] = [[name, *(found[key] for key in ACCURACIES)] for name, found in rows.items()]
    gains: list[str | None] = []
    for key in ACCURACIES:
        before, after = first[key], last[key]
        if before is None or after is None:
            gains.append(None)
        else:
            gains.append(f"{after - before:+.1f}")
    columns = ["Accuracy in %", *ACCURACIES.values()]
    output.table(columns, [*lines, ["gain", *gains]], title)


def print_evaluation(output: Output, values: Mapping[str, Any], title: str) -> None:
    """Zero-shot and personalized accuracy of every client, and `title` over their means."""
    rows: list[Row] = []
    for client, figures in values["clients"].items():
        own = figures["personalized"]
        local = figures["zero_shot"]["local"]
        strength = f"{figures['strength']:g}"
        rows.append([client, strength, local, own["local"], own["base"], own["novel"], own["all"]])
    columns = ["Client", "Strength", "Zero-shot local", "Local", "Base", "Novel", "All"]
    output.table(columns, rows, "Clients, accuracy in %")
    means = {"zero-shot": values["zero_shot"], "personalized": values["personalized"]}
    print_accuracies(output, means, title)
    lowest = []
    for key, name in ACCURACIES.items():
        worst = values["worst"][key]
        if worst is not None:
            lowest.append(f"{name.lower()} {worst['accuracy']:.1f} ({worst['client']})")
    output.say(f"Worst client of each: {', '.join(lowest)}")
    losing = ", ".join(values["losing_clients"])
    output.say(
        f"Clients that lose more than a point of base or novel: {values['losing_share']:.0f} %"
        + (f" ({losing})" if losing else "")
    )
