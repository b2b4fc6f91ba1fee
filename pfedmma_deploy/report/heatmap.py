"""Who holds how many images of which class, as a picture and as shaded blocks for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.types import Federation

_SHADES: Final = " ░▒▓█"
_MAX_NAMES: Final = 40
"""Classes that are listed by name; of more, the first and the last."""
_MAX_COUNTS: Final = 1600
"""Cells; in a larger picture numbers would be specks, so it has small cells without."""
_LETTER: Final = 0.01
"""Inches per letter and point of its size."""
_MAX_INCHES: Final = 200.0
"""Beyond this matplotlib cannot draw: thousands of clients are squeezed."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """Training images by client and class."""

    clients: tuple[str, ...]
    classes: tuple[str, ...]
    """Base classes, in class order."""
    counts: NDArray[np.int64]
    """[clients, classes]."""


def count_holdings(federation: Federation) -> Holdings:
    """How many training images of each base class each client holds."""
    column = {label: place for place, label in enumerate(federation.base)}
    counts = np.zeros((len(federation.clients), len(federation.base)), np.int64)
    for row, client in enumerate(federation.clients):
        for example in client.train:
            counts[row, column[example.label]] += 1
    ids = tuple(client.id for client in federation.clients)
    return Holdings(ids, tuple(federation.names(federation.base)), counts)


def draw_heatmap(holdings: Holdings, path: Path, title: str) -> None:
    """Writes a PNG of clients (rows) by classes (columns); colour is the square root of the count.

    Cells have the same size whatever their number, so that every label can be read. Up to 1,600
    cells have their counts in them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    rows, columns = holdings.counts.shape
    top = max(1, int(holdings.counts.max(initial=0)))
    numbered = rows * columns <= _MAX_COUNTS
    points, tall = (7, 0.24) if numbered else (6, 0.13)
    wide = max(tall, len(str(top)) * 0.07 + 0.1) if numbered else tall
    labels = [points * _LETTER * max(map(len, n)) for n in (holdings.clients, holdings.classes)]
    width = max(4.5, min(columns * wide + labels[0] + 1.8, _MAX_INCHES))
    height = max(2.5, min(rows * tall + labels[1] + 1.2, _MAX_INCHES))
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    norm = PowerNorm(0.5, vmin=0, vmax=top)
    image = axes.imshow(holdings.counts, cmap="Blues", norm=norm, aspect="auto")
    axes.set_xticks(range(columns), holdings.classes, rotation=90, fontsize=points)
    axes.set_yticks(range(rows), holdings.clients, fontsize=points)
    axes.set_xlabel("class")
    axes.set_ylabel("client")
    axes.set_title(title, fontsize=10)
    # Lines between the cells: minor ticks lie on their edges.
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.85", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    if numbered:
        for (row, column), count in np.ndenumerate(holdings.counts):
            if count:
                ink = "white" if count > 0.4 * top else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=6, color=ink)
    figure.colorbar(image, ax=axes, label="training images", shrink=min(1.0, 4 / height))
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_figure(path, dpi=150, format="png")


def draw_blocks(holdings: Holdings, width: int) -> list[str]:
    """Lines of at most `width` characters: a row per client, a cell per class.

    A cell has a block, darker with the square root of the count, and the count where there is room
    for it; else the block alone. Where not even blocks fit, neighbouring classes share one.
    """
    counts, classes = holdings.counts, len(holdings.classes)
    margin = min(max(map(len, (*holdings.clients, "client"))), max(width // 4, 6))
    room = max(width - margin - 2, 8)
    together = -(-classes // room)
    if together > 1:
        counts = np.add.reduceat(counts, range(0, classes, together), axis=1)
    digits = len(str(counts.max(initial=0)))
    cell = digits + 2 if counts.shape[1] * (digits + 2) <= room else 1
    lines = [f"{'client':<{margin}}  {_heading(counts.shape[1], cell, together)}"]
    top = max(1, int(counts.max(initial=0)))
    for name, row in zip(holdings.clients, counts, strict=True):
        cells = "".join(_cell(int(count), top, cell) for count in row)
        lines.append(f"{_shorten(name, margin):<{margin}}  {cells}".rstrip())
    return [*lines, *_legend(holdings.classes, counts, together, width)]


def _cell(count: int, top: int, width: int) -> str:
    block = _SHADES[int(np.ceil(np.sqrt(count / top) * (len(_SHADES) - 1)))]
    return block if width == 1 else f"{count or '·':>{width - 1}}{block}"


def _heading(columns: int, cell: int, together: int) -> str:
    """Numbers of the columns, or of every tenth where a cell is narrow."""
    if cell > 1 and len(str(columns - 1)) < cell:
        return "".join(f"{column:>{cell - 1}} " for column in range(columns)).rstrip()
    step = -(-10 // cell)
    marks = (f"{column * together:<{step * cell}}" for column in range(0, columns, step))
    text = "".join(marks).rstrip()
    # The last number may be longer than the columns that are left for it.
    return text if len(text) <= columns * cell else text[: text.rindex(" ")].rstrip()


def _legend(
    classes: Sequence[str], counts: NDArray[np.int64], together: int, width: int
) -> Iterator[str]:
    listed = [f"{number} {name}" for number, name in enumerate(classes)]
    if len(listed) > _MAX_NAMES:
        listed = [listed[0], f"... {listed[-1]}"]
    yield from textwrap.wrap(f"classes: {', '.join(listed)}", max(width, 20))
    if together > 1:
        yield f"a block stands for {together} classes next to each other"
    yield f"blocks: empty 0 to full {counts.max(initial=0):,} training images"


def _shorten(name: str, width: int) -> str:
    return name if len(name) <= width else f"{name[: width - 1]}…"
