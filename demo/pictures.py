"""Tables of numbers as pictures, once for light and once for dark pages."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Picture", "confusion_picture", "counts_picture"]

MOST_NUMBERS = 16
"""Rows or columns beyond which cells are too small for numbers."""
MOST_NAMES = 60
"""Rows or columns beyond which they are too narrow for names."""
SHORT = 14
"""Letters of a name that are shown on an axis."""


@dataclass(frozen=True)
class Picture:
    """The same picture for both kinds of page, as PNG, and in words."""

    light: bytes
    dark: bytes
    description: str


@dataclass(frozen=True)
class _Look:
    text: str
    back: str
    low: str
    high: str
    line: str


LIGHT = _Look(text="#1f2937", back="#ffffff", low="#f1f5f9", high="#0f766e", line="#94a3b8")
DARK = _Look(text="#e5e7eb", back="#1f2937", low="#273549", high="#2dd4bf", line="#64748b")


def confusion_picture(counts: NDArray[Any], names: Sequence[str], title: str) -> Picture:
    """A confusion matrix: counts [C, C] of true class (row) and answer (column).

    Colour is the share of its row, so that classes with few images count as much as others.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    right = int(np.trace(counts))
    description = f"{title}: {right} of {int(counts.sum())} right, {len(names)} classes"

    def draw(look: _Look) -> bytes:
        figure, axes = _grid(shares, look, names, names)
        axes.set_title(title, color=look.text, fontsize=11, loc="left", pad=10)
        axes.set_ylabel("true class", color=look.text, fontsize=9)
        axes.set_xlabel("answer", color=look.text, fontsize=9)
        _numbers(axes, counts, shares, look)
        return _png(figure)

    return Picture(draw(LIGHT), draw(DARK), description)


def counts_picture(
    counts: NDArray[Any], rows: Sequence[str], names: Sequence[str], novel: Sequence[int]
) -> Picture:
    """Who has which classes: counts [clients, C]; names of novel classes are in italics."""
    shares = np.sqrt(counts / max(1, int(counts.max(initial=0))))
    description = f"Training images of {len(rows)} clients by class: " + "; ".join(
        f"{row}: "
        + ", ".join(f"{names[c]} {counts[r, c]}" for c in np.flatnonzero(counts[r]).tolist())
        for r, row in enumerate(rows[:MOST_NUMBERS])
    )

    def draw(look: _Look) -> bytes:
        figure, axes = _grid(shares, look, rows, names)
        for label in novel:
            if label < len(axes.get_xticklabels()):
                axes.get_xticklabels()[label].set_fontstyle("italic")
        _numbers(axes, counts, shares, look)
        return _png(figure)

    return Picture(draw(LIGHT), draw(DARK), description)


def _grid(
    shares: NDArray[Any], look: _Look, rows: Sequence[str], columns: Sequence[str]
) -> tuple[Figure, Axes]:
    # pyplot keeps figures in global state; pages are drawn by many threads.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    cell = 0.38 if max(len(rows), len(columns)) <= MOST_NAMES else 0.08
    size = (1.5 + cell * max(len(columns), 8), 1.3 + cell * max(len(rows), 3))
    figure = Figure(figsize=size, facecolor=look.back, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = LinearSegmentedColormap.from_list("shares", [look.low, look.high])
    axes.imshow(shares, cmap=colours, vmin=0, vmax=1, aspect="auto")
    _names(axes, look, rows, columns)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    if cell > 0.1:
        axes.grid(which="minor", color=look.back, linewidth=2)
    axes.tick_params(which="both", length=0)
    return figure, axes


def _names(axes: Axes, look: _Look, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Names beside rows and below columns, where there is room for them."""
    for names, ticks, turn in (
        (rows, axes.set_yticks, 0),
        (columns, axes.set_xticks, 45),
    ):
        if len(names) > MOST_NAMES:
            ticks([])
            continue
        short = [n if len(n) <= SHORT else f"{n[: SHORT - 1]}…" for n in names]
        # A dollar sign would start a formula.
        labels = [name.replace("_", " ").replace("$", r"\$") for name in short]
        ticks(range(len(names)), labels, color=look.text, fontsize=9)
        if turn:
            for text in axes.get_xticklabels():
                text.set(rotation=turn, ha="right", rotation_mode="anchor")


def _numbers(axes: Axes, counts: NDArray[Any], shares: NDArray[Any], look: _Look) -> None:
    if max(counts.shape) > MOST_NUMBERS:
        return
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = look.back if shares[row, column] > 0.5 else look.text
            axes.text(column, row, f"{count}", ha="center", va="center", fontsize=8.5, color=colour)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()
