"""The figure of a comparison: personalization against generalization, one region per method."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from pfedmma_deploy.report.significance import Ellipse, mean_ellipse

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that people with colour-blindness tell apart (Okabe and Ito, 2008), and shapes besides.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS: Final = "os^DvPX"
_WORDS: Final = {"novel": "classes never seen", "base": "all classes trained on"}


def frontier(values: dict[str, Any]) -> bytes:
    """PNG of local accuracy (x) against novel accuracy (y), or base where nothing is novel.

    Means over seeds, each in its 95 % confidence ellipse (`mean_ellipse`) where there are three
    seeds or more. The line joins the methods that no other one beats on both axes.

    Args:
        values: what `comparison_files.to_dict` makes of a comparison.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    key = "novel" if any(row["novel"] for row in values["rows"]) else "base"
    rows = [row for row in values["rows"] if row["local"] and row[key]]
    figure = Figure(figsize=(9, 6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ellipses = [_ellipse(row, key) for row in rows]
    points = [(row["local"]["mean"], row[key]["mean"]) for row in rows]
    _set_limits(axes, points, ellipses)
    _draw_front(axes, points)
    for index, (row, ellipse) in enumerate(zip(rows, ellipses, strict=True)):
        _draw_method(axes, index, row["method"], points[index], ellipse)
    region = "; regions: 95 % for the mean over seeds" if any(ellipses) else ""
    options = values["options"]
    axes.set_title(f"{options['data']} on {options['backbone']}{region}", loc="left", fontsize=11)
    axes.set_xlabel("Personalization: accuracy on each client's own classes (%)")
    axes.set_ylabel(f"Generalization: accuracy on {_WORDS[key]} (%)")
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if points:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    buffer = io.BytesIO()
    # No date and no version inside: the same figures give the same file.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def undominated(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one reaches on one axis and beats on the other; ascending in x."""
    front: list[tuple[float, float]] = []
    for point in sorted(set(points), reverse=True):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front[::-1]


def _ellipse(row: dict[str, Any], key: str) -> Ellipse | None:
    seeds = row["by_seed"]
    return mean_ellipse([one["local"] for one in seeds], [one[key] for one in seeds])


def _draw_front(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    front = undominated(points)
    if len(front) > 1:
        x, y = zip(*front, strict=True)
        axes.plot(x, y, color="0.55", linewidth=1, linestyle=(0, (4, 3)), zorder=3)


def _draw_method(
    axes: Axes, index: int, name: str, point: tuple[float, float], ellipse: Ellipse | None
) -> None:
    from matplotlib import patches

    colour = _COLOURS[index % len(_COLOURS)]
    if ellipse is not None:
        left, right, bottom, top = axes.axis()
        fits = 2 * ellipse.reach[0] < right - left and 2 * ellipse.reach[1] < top - bottom
        region = patches.Ellipse(
            (ellipse.x, ellipse.y),
            ellipse.width,
            ellipse.height,
            angle=ellipse.angle,
            # One that is larger than the picture would hide the others.
            facecolor=(colour, 0.10 if fits else 0.0),
            edgecolor=(colour, 0.55 if fits else 0.25),
            linewidth=1,
            zorder=2,
        )
        axes.add_patch(region)
    marker = _MARKERS[index // len(_COLOURS) % len(_MARKERS)]
    style: dict[str, Any] = {
        "color": colour,
        "markersize": 7,
        "markeredgecolor": "white",
        "zorder": 4,
    }
    axes.plot(*point, marker, label=name, **style)


def _set_limits(
    axes: Axes, points: Sequence[tuple[float, float]], ellipses: Sequence[Ellipse | None]
) -> None:
    """Every mean is inside, and of the regions what does not dwarf the distances between means.

    Of three seeds a region has sixteen times the size of the deviation.
    """
    if not points:
        return
    for axis, set_limits in ((0, axes.set_xlim), (1, axes.set_ylim)):
        means = [point[axis] for point in points]
        low, high = min(means), max(means)
        room = max(high - low, 2.0)
        lowest, highest = low, high
        for mean, ellipse in zip(means, ellipses, strict=True):
            reach = ellipse.reach[axis] if ellipse else 0.0
            lowest, highest = min(lowest, mean - reach), max(highest, mean + reach)
        margin = 0.05 * room
        set_limits(max(lowest, low - room) - margin, min(highest, high + room) + margin)
