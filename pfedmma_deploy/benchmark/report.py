"""How subjects are timed, the rows that come of it, and tables of rows: Markdown with JSON beside.

A busy machine must disturb all alike. Every round gives each contestant one short window; the order
turns around from round to round (A B, B A, ...), and a ratio is taken within each round before the
median over the rounds: what other processes take for a while is taken from both of its sides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.store.files import json_bytes, write_bytes
from pfedmma_deploy.system import Environment

Measure = Literal["rate", "end-to-end", "load", "clients"]
Row = dict[str, Any]
"""One subject in one measurement, JSON-ready. What does not apply has no key."""
FEW_CALLS = 4
"""A window that holds fewer calls than this spends none of them on warming up."""
ENOUGH_FOR_P99 = 100
"""Calls below which the slowest hundredth is no measurement."""


Contestant = tuple[Callable[[], object], float]
"""One call, which returns when its result is there; and what it does, such as images."""


@dataclass
class Windows:
    """What was seen of one contestant."""

    rates: list[float] = field(default_factory=list)
    """Items per second, one per round."""
    calls: list[float] = field(default_factory=list)
    """Seconds of every timed call."""


def run_rounds(
    contestants: Mapping[str, Contestant],
    rounds: int,
    seconds: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress | None = None,
    label: str = "rounds",
) -> dict[str, Windows]:
    """Time all contestants in turns; their windows by name, in the order of `contestants`.

    Each gets `rounds` windows of `seconds`, which hold at least one call.
    """
    seen = {name: Windows() for name in contestants}
    # Turned around every time, so that nobody always runs behind the one that heats the processor.
    order: list[str] = []
    for turn in range(rounds):
        order += contestants if turn % 2 == 0 else reversed(seen)
    for name in (progress or Silent()).track(order, label, len(order)):
        windows, (run, items) = seen[name], contestants[name]
        # Caches and thread pools hold the previous contestant's state. A long call outlasts that.
        if not windows.calls or windows.calls[-1] * FEW_CALLS < seconds:
            run()
        start = before = clock()
        count = 0
        while count == 0 or before - start < seconds:
            run()
            after = clock()
            windows.calls.append(after - before)
            before, count = after, count + 1
        windows.rates.append(count * items / (before - start))
    return seen


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """`median`, `low` and `high` quartile of one value or more, linear between neighbours."""
    low, middle, high = np.percentile(values, (25, 50, 75)).tolist()
    return {"median": middle, "low": low, "high": high}


def new_row(measure: Measure, backbone: str, about: Row, **values: Any) -> Row:
    """A row before it is measured; a rate and a ratio always have their keys."""
    row = {"measure": measure, "backbone": backbone, **about, **values}
    return {"images_per_second": None, "ratio": None, **row}


def timed(windows: Mapping[str, Windows], label: str, peer: str) -> Row:
    """What `windows` say of the contestant `label`, beside all others and `peer` first.

    Returns:
        `images_per_second` with the `quartiles` of the rounds; `peer` and the `ratio` to it; and
        `ratios`, to every other contestant, with quartiles.
    """
    rates = windows[label].rates
    rate = quartiles(rates)
    ratios = {}
    for other, theirs in windows.items():
        if other != label:
            # Round by round: the ratio of two medians would mix what disturbed different rounds.
            ratios[other] = quartiles([a / b for a, b in zip(rates, theirs.rates, strict=True)])
    row: Row = {"images_per_second": rate["median"], "ratios": ratios}
    row["quartiles"] = [rate["low"], rate["high"]]
    return row | {"peer": peer, "ratio": ratios[peer]["median"]} if peer in ratios else row


def latency(calls: Sequence[float]) -> dict[str, float | None]:
    """Percentiles of the seconds of single calls; p99 is None where there were too few for it."""
    p50, p95, p99 = np.percentile(calls, (50, 95, 99)).tolist()
    enough = len(calls) >= ENOUGH_FOR_P99
    return {"p50": p50, "p95": p95, "p99": p99 if enough else None, "calls": len(calls)}


Columns = Mapping[str, tuple[str, float]]
"""Heading -> the key of a row and the factor to the unit of the heading."""


@dataclass(frozen=True)
class Section:
    """One table of a report."""

    title: str
    note: str
    """What a reader must know to read it."""
    columns: Sequence[str]
    cells: Sequence[Sequence[str]]
    reasons: Sequence[str] = ()
    """What was not measured, and why."""


def make_section(
    title: str, note: str, columns: Columns, rows: Sequence[Row], reasons: Sequence[str] = ()
) -> Section:
    """A table of rows; a column in which nothing stands is left out."""
    filled = {}
    for heading, (key, scale) in columns.items():
        column = [number(row.get(key), scale) for row in rows]
        if set(column) != {"-"}:
            filled[heading] = column
    cells = [list(line) for line in zip(*filled.values(), strict=True)]
    return Section(title, note, list(filled), cells, reasons)


def number(value: Any, scale: float = 1) -> str:
    """A cell: three digits of a number in its unit, or a text; `-` for what is not there."""
    if value is None or isinstance(value, str):
        return value or "-"
    if isinstance(value, int) and scale == 1:
        return f"{value:,}"
    scaled = value * scale
    if 0 < abs(scaled) < 0.005:
        return f"{scaled:.0e}"
    digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
    return f"{scaled:,.{digits}f}"


@dataclass(frozen=True)
class Report:
    """Everything that was measured at once."""

    kind: Literal["inference", "training", "gpu"]
    command: str
    """What repeats the measurement."""
    how: str
    """How it was measured, a sentence."""
    environment: Environment
    rows: Sequence[Row]
    tables: Sequence[Section]
    """The same for people."""

    def to_dict(self) -> dict[str, Any]:
        """As `pfedmma bench --json` prints it."""
        return {"rows": self.rows, "environment": self.environment.to_dict()}

    def write(self, folder: Path) -> list[Path]:
        """Write `KIND-MACHINE.md` and `.json` into `folder`, which is made; returns both paths."""
        machine = self.environment.machine
        paragraphs = [
            f"# {self.kind.capitalize().replace('Gpu', 'GPU')} on {machine}",
            f"Made by `{self.command}`. {self.how}",
            environment_lines(self.environment),
        ]
        for section in self.tables:
            paragraphs.append(f"## {section.title}")
            if section.note not in paragraphs:
                paragraphs.append(section.note)
            head, *body = [f"| {' | '.join(line)} |" for line in (section.columns, *section.cells)]
            paragraphs.append("\n".join([head, f"|{'---|' * len(section.columns)}", *body]))
            paragraphs += [f"Not measured: {reason}" for reason in section.reasons]
        files = [folder / f"{self.kind}-{machine}.{ending}" for ending in ("md", "json")]
        write_bytes(files[0], ("\n\n".join(paragraphs) + "\n").encode())
        write_bytes(files[1], json_bytes(self.to_dict()))
        return files


def environment_lines(environment: Environment) -> str:
    """The environment as a Markdown list."""
    memory, load = environment.memory, environment.load
    lines = [
        f"- Processor: {environment.cpu} ({', '.join(environment.instructions) or 'unknown'}), "
        f"{environment.cores} cores, {environment.threads} threads used"
        + (f", {memory / 1e9:.0f} GB" if memory else ""),
        f"- GPU: {environment.gpu or 'none'}",
        f"- System: {environment.system}, Python {environment.python}",
        "- " + ", ".join(f"{name} {text}" for name, text in environment.versions.items()),
        f"- Measured {environment.date}"
        + (f"; load of the machine before: {load:.2f}" if load is not None else ""),
    ]
    return "\n".join(lines)
