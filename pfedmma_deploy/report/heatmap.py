"""Who holds how many images of which class, as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.types import Federation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Holdings", "count_holdings", "draw_heatmap"]

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
    _draw_grid(axes, rows, columns)
    if numbered:
        _write_counts(axes, holdings.counts)
    figure.colorbar(image, ax=axes, label="training images", shrink=min(1.0, 4 / height))
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_figure(path, dpi=150, format="png")


def _draw_grid(axes: Axes, rows: int, columns: int) -> None:
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.85", linewidth=0.5)
    axes.tick_params(which="minor", length=0)


def _write_counts(axes: Axes, counts: NDArray[np.int64]) -> None:
    bright = 0.4 * max(1, int(counts.max(initial=0)))
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if count > bright else "black"
            axes.text(column, row, str(count), ha="center", va="center", fontsize=6, color=colour)
