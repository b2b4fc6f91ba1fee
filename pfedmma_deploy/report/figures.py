"""The plots of a report, as SVG that is part of the page: its colours and its font are the page's.

matplotlib draws with the stand-ins in `COLOURS`, which become the page's CSS variables. So one
drawing serves light and dark, screen and paper.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from markupsafe import Markup

from pfedmma_deploy.report.measures import spread_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS: Final = {
    "ink": "#010101",
    "soft": "#020202",
    "line": "#030303",
    **{f"c{number}": f"#0500{number:02x}" for number in range(10)},
}
"""Stand-ins by CSS variable: no drawing has them by chance. `c0` is zero-shot, `c1` personalized;
`c0` to `c9` are also the classes."""
_MARKERS: Final = "osD^vPX<>p"
MOST_ROWS: Final = 30
"""Clients in a plot of one row per client."""
_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a class may be called $x$
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.5,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["soft"],
    "ytick.color": COLOURS["soft"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "legend.frameon": False,
    "legend.fontsize": 8,
    "savefig.facecolor": "none",
}


def draw(describe: Any, *values: Any, size: tuple[float, float] = (4.6, 3.0), alt: str) -> Markup:
    """An SVG element for the page.

    Args:
        describe: draws `values` on the axes that it is given.
        values: passed on.
        size: inches; the page scales the drawing to the room that there is.
        alt: what the drawing shows, for those who cannot see it.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context({**_STYLE, "svg.hashsalt": alt}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        describe(figure.add_subplot(), *values)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _for_page(buffer.getvalue(), alt)


def _for_page(text: str, alt: str) -> Markup:
    """matplotlib's file as an element: no address, no fixed size, the page's font and colours."""
    text = text[text.index("<svg") + len("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Ids that nothing refers to would stand for several places of the page.
    text = re.sub(r' xmlns(:xlink)?="[^"]*"|(?<=<g) id="[^"]*"| font-family: [^;"]*;', "", text)
    for side in ("width", "height"):
        text = re.sub(rf'^([^>]*?) {side}="[^"]*"', r"\1", text)
    for name, colour in COLOURS.items():
        text = text.replace(f": {colour}", f": var(--{name})")
    label = Markup('<svg role="img" aria-label="{}"').format(alt)
    # matplotlib has escaped every name in it.
    return label + Markup(text.replace("xlink:href", "href"))


def draw_pairs(axes: Axes, answer: Mapping[str, Any], key: str) -> None:
    """Zero-shot and personalized accuracy of every client with intervals, a row per client."""
    rows = list(answer["clients"].items())[:MOST_ROWS]
    for height, (_, entry) in enumerate(rows):
        for shift, side in ((-0.14, "zero_shot"), (0.14, "personalized")):
            value, interval = entry[side][key], entry["intervals"][side][key]
            if value is not None:
                colour = COLOURS["c0" if side == "zero_shot" else "c1"]
                marker = "o" if side == "zero_shot" else "D"
                axes.plot(interval, [height + shift] * 2, color=colour, linewidth=1.6)
                axes.plot(value, height + shift, marker, color=colour, markersize=4.5)
    axes.set_yticks(range(len(rows)), [shorten(client) for client, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("accuracy, %")
    axes.grid(visible=False, axis="y")


def draw_strength(axes: Axes, curve: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> None:
    """Mean accuracies by strength; 0 is zero-shot, 1 the clients as trained."""
    strengths = [point["strength"] for point in curve]
    for number, (key, words) in enumerate(names.items()):
        values = [point[key] for point in curve]
        if None not in values:
            style: dict[str, Any] = {"color": COLOURS[f"c{number}"], "marker": _MARKERS[number]}
            axes.plot(strengths, values, markersize=4, label=words, **style)
    axes.axvline(1, color=COLOURS["soft"], linewidth=1, linestyle="--")
    axes.set_xlabel("strength: 0 zero-shot, 1 as trained")
    axes.set_ylabel("accuracy, %")
    axes.legend()


def draw_cka(axes: Axes, variants: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """CKA of the two towers by pair of blocks, one line per variant."""
    for number, (name, found) in enumerate(variants.items()):
        if found["features"] is not None:
            values = found["features"]["cka"]
            axes.plot(
                range(1, len(values) + 1),
                [float("nan") if value is None else value for value in values],
                marker=_MARKERS[number],
                markersize=4,
                color=COLOURS[f"c{number}"],
                label=names[name],
            )
    axes.set_xlabel("pair of blocks, first to last")
    axes.set_ylabel("linear CKA")
    axes.locator_params(axis="x", integer=True)
    axes.legend()


def draw_picture(axes: Axes, picture: Mapping[str, Any], state: str) -> None:
    """Image features (small) and text features (large) in a plane, by class."""
    points, handles = picture[state], []
    for number in range(len(picture["classes"])):
        placed = zip(points["images"], picture["labels"], strict=True)
        inside = [point for point, label in placed if label == number]
        colour, marker = COLOURS[f"c{number}"], _MARKERS[number]
        xs, ys = [point[0] for point in inside], [point[1] for point in inside]
        axes.scatter(xs, ys, s=12, alpha=0.75, color=colour, marker=marker, linewidths=0.4)
        x, y = points["texts"][number]
        style: dict[str, Any] = {"facecolors": colour, "edgecolors": COLOURS["ink"]}
        handles.append(axes.scatter([x], [y], s=90, marker=marker, linewidths=1.2, **style))
    axes.set_xlabel("first principal direction")
    axes.set_ylabel("second")
    # Both pictures have the same frame, so that they can be compared.
    both = [*picture["before"]["images"], *picture["before"]["texts"]]
    both += [*picture["after"]["images"], *picture["after"]["texts"]]
    axes.set_xlim(*_frame([point[0] for point in both]))
    axes.set_ylim(*_frame([point[1] for point in both]))
    # Named here: matplotlib leaves out what is labelled with a name that begins with "_".
    names = [shorten(name) for name in picture["classes"]]
    axes.figure.legend(handles, names, loc="outside lower center", ncols=4)


def _frame(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room


def draw_curves(axes: Axes, training: Mapping[str, Any], key: str, label: str) -> None:
    """A thin line per client, of some evenly spaced ones where there are many, and the mean."""
    for curve in spread_out(list(training["clients"].values()), MOST_ROWS):
        values = [float("nan") if value is None else value for value in curve[key]]
        axes.plot(curve["round"], values, color=COLOURS["c0"], linewidth=0.8, alpha=0.55)
    rounds = training["rounds"]
    mean = [float("nan") if r[key] is None else r[key] for r in rounds]
    axes.plot([r["round"] for r in rounds], mean, "D-", color=COLOURS["c1"], linewidth=2.2)
    axes.set_xlabel("round")
    axes.set_ylabel(label)
    axes.locator_params(axis="x", integer=True)


def draw_reliability(
    axes: Axes, bins: Mapping[str, Sequence[Mapping[str, float]]], names: Mapping[str, str]
) -> None:
    """Accuracy of the answers by how sure they were; on the diagonal, both agree."""
    axes.plot([0, 100], [0, 100], "--", color=COLOURS["soft"], linewidth=1)
    for number, (model, rows) in enumerate(bins.items()):
        if rows:
            axes.plot(
                [row["confidence"] for row in rows],
                [row["accuracy"] for row in rows],
                marker=_MARKERS[number],
                markersize=4,
                color=COLOURS[f"c{number}"],
                label=names[model],
            )
    axes.set_xlabel("probability of the answer, %")
    axes.set_ylabel("right, %")
    axes.legend()


def shorten(name: str, most: int = 18) -> str:
    """A name that fits beside an axis."""
    return name if len(name) <= most else f"{name[: most - 1]}…"
