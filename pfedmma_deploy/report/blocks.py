"""Who holds how many images of which class, as shaded blocks for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.report.heatmap import Holdings

__all__ = ["draw_blocks"]

_SHADES: Final = " ░▒▓█"
_MAX_NAMES: Final = 40
"""Classes that are listed by name; of more, the first and the last."""


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
