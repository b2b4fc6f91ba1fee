"""What the page shows, as HTML and pictures.

The HTML is in `assets/demo/views.html` and `about.md`, escaped by jinja2; this module gives those
templates what they need. Pictures of tables are drawn once for light and once for dark pages.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.runtime.manifest import Figures
from pfedmma_deploy.templates import environment, render_markdown
from pfedmma_deploy.types import MOST_LOST, STRENGTHS

from .compare import Comparison
from .gallery import FILTERS, Filter, Gallery
from .model import CLASS_SETS, KINDS, ClientRow, DemoModel, client_rows, image_counts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GROUPS = {
    "seen": ("Seen here", "classes that this client trained on"),
    "elsewhere": ("Seen elsewhere", "classes that only other clients trained on"),
    "novel": ("Novel", "classes that nobody trained on"),
    "all": ("All", "all images whose class is known"),
}
FIGURES = {
    "local": ("Local", "its own test images, among the base names"),
    "base": ("Base", "test images of all base classes"),
    "novel": ("Novel", "classes that nobody trained on"),
}
MOST_TAGS = 24
"""Classes that a client's card names."""
MOST_CLIENTS = 60
"""Clients that are shown; the means are over all of them."""
KEPT = "base", "novel"
MOST_SKIPPED = 8
"""Images left out that are listed."""


@cache
def _macros() -> Any:
    """The macros of `views.html` by name."""
    # Names of classes and clients, and of uploaded files, come from anybody.
    found = environment("demo", autoescape=True)
    found.filters["words"] = _words
    found.filters["client_title"] = _client_title
    found.filters["data_url"] = _data_url
    found.filters["number"] = "{:,}".format
    found.globals.update(KINDS=KINDS, CLASS_SETS=CLASS_SETS)
    return found.get_template("views.html").module


def render(name: str, *values: Any) -> str:
    """One of the macros of `views.html` with these values, escaped."""
    return str(getattr(_macros(), name)(*values))


def _words(name: str) -> str:
    """A class name for people: underscores of folder names are spaces."""
    return name.replace("_", " ")


def _client_title(client: str) -> str:
    return "Zero-shot CLIP" if client == "zero-shot" else f"Client {client}"


def _data_url(data: bytes) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def heading(model: DemoModel) -> str:
    """The head of the page, with what it runs on."""
    count = len(model.clients)
    clients = "1 client" if count == 1 else f"{count} clients"
    backbone = model.manifest.backbone["name"]
    return render(
        "heading", f"{model.title}: {backbone}, {clients}, {len(model.class_names)} classes"
    )


def about(model: DemoModel) -> str:
    """What the models are, where the figures come from, and what they do not show, as Markdown."""
    return render_markdown(
        "demo",
        "about.md",
        manifest=model.manifest,
        title=model.title,
        clients=len(model.clients),
        device=model.classifier.device,
        provider=model.classifier.provider,
    )


def comparison(found: Comparison) -> str:
    """Verdict, one column per model, and the badge."""
    device = {"cpu": "CPU", "cuda": "GPU"}.get(found.device, found.device)
    return render("comparison", found, device)


def client_card(model: DemoModel, client: str) -> str:
    """What a client has seen, and what its model reaches."""
    place = model.clients.index(model.client(client))
    return render("client_card", client_rows(model)[place], MOST_TAGS)


@dataclass(frozen=True)
class CurveLine:
    """One figure of a client by strength, in the units of the drawing."""

    key: str
    name: str
    points: tuple[tuple[float, float], ...]
    """Where it was measured: x, y."""
    mark: tuple[float, float]
    """Where the line is at the strength in force."""
    value: float
    """Percent at the measured strength that is nearest."""


CURVE_WIDTH, CURVE_HEIGHT = 360.0, 90.0
"""Of the drawing, without what is written beside it."""


def strength_curve(model: DemoModel, client: str, strength: float) -> str:
    """A client's measured accuracies by strength, the strength in force marked."""
    place = model.clients.index(model.client(client))
    row = client_rows(model)[place]
    if model.manifest.strength is None:
        return ""
    if not row.curve:
        return render(
            "hint",
            "This bundle does not say how accurate its clients are at other strengths: export it "
            "anew from its run.",
        )
    values = [v for point in row.curve for v in (point.local, point.base, point.novel)]
    known = [value for value in values if value is not None]
    low, high = 10 * np.floor(min(known) / 10), 10 * np.ceil(max(known) / 10)
    # Of a flat curve too.
    low, high = (low, high) if low < high else (low - 10, high)
    nearest = min(row.curve, key=lambda point: abs(point.strength - strength))
    lines = []
    for key, (name, _) in FIGURES.items():
        found = [(one.strength, getattr(one, key)) for one in row.curve]
        if all(value is not None for _, value in found):
            at = np.array([x / STRENGTHS[-1] * CURVE_WIDTH for x, _ in found])
            up = np.array([(high - y) / (high - low) * CURVE_HEIGHT for _, y in found])
            x = strength / STRENGTHS[-1] * CURVE_WIDTH
            mark = float(x), float(np.interp(x, at, up))
            points = tuple(zip(at.tolist(), up.tolist(), strict=True))
            lines.append(CurveLine(key, name, points, mark, getattr(nearest, key)))
    ticks = [(x / STRENGTHS[-1] * CURVE_WIDTH, x) for x in (0.0, 0.5, 1.0, 1.5)]
    size = CURVE_WIDTH, CURVE_HEIGHT
    return render("strength_curve", row, lines, strength, nearest.strength, low, high, ticks, size)


def figures(gallery: Gallery) -> str:
    """Accuracy of both models by group, and what should be said about the images."""
    return render("figures", gallery, GROUPS, len(gallery.choose("differ")), MOST_SKIPPED)


def grid(gallery: Gallery, chosen: Filter, most: int) -> tuple[str, bool]:
    """The images that a filter shows, at most `most`, and whether there are more."""
    rows = gallery.choose(chosen)
    said = f"“{FILTERS[chosen]}”: {len(rows):,} of {len(gallery.rows):,} images"
    if not rows:
        return render("hint", f"{said}. Nothing to see here: choose another filter."), False
    return render("grid", said, rows, most), len(rows) > most


def confusions(gallery: Gallery) -> str:
    """Both confusion matrices as pictures, side by side where there is room."""
    if not gallery.figures():
        return render(
            "hint",
            "A confusion matrix needs images whose true class is known: a zip with one folder per "
            "class, or the sample.",
        )
    plain = confusion_picture(*gallery.confusion("zero_shot"), _client_title("zero-shot"))
    own = confusion_picture(*gallery.confusion("personalized"), _client_title(gallery.client))
    return render("pictures", (plain, own))


def traffic(model: DemoModel) -> str:
    """How much was sent, in tiles."""
    history = model.manifest.history
    if history is None:
        return ""
    shared, total = history.parameters.get("shared", 0), sum(history.parameters.values())
    share = f"{100 * shared / total:.2g} % of the model" if total else ""
    size: tuple[str, str] = str(history.bytes_total), "bytes"
    for unit, factor in (("kB", 1e3), ("MB", 1e6), ("GB", 1e9)):
        if history.bytes_total >= factor:
            size = f"{history.bytes_total / factor:.3g}", unit
    return render("traffic", len(model.clients), history, share, size)


def accuracies(model: DemoModel) -> str:
    """Local, base and novel accuracy of every client, zero-shot beside personalized."""
    rows = [row for row in client_rows(model) if row.zero_shot and row.personalized]
    if not rows:
        return render(
            "hint",
            "This bundle does not say how accurate its clients are. Export it from a finished run "
            "with `pfedmma export`, or measure them with `pfedmma evaluate`.",
        )
    means = _mean(rows, "zero_shot"), _mean(rows, "personalized")
    losing = [row.id for row in rows if _loses(row)]
    return render("accuracies", rows, means, FIGURES, losing, MOST_CLIENTS)


def _loses(row: ClientRow) -> bool:
    """Whether the client's model loses more than a point of base or novel accuracy."""
    pairs = [(getattr(row.zero_shot, key), getattr(row.personalized, key)) for key in KEPT]
    return any(None not in pair and pair[0] - pair[1] > MOST_LOST for pair in pairs)


def _mean(rows: Sequence[ClientRow], side: str) -> Figures:
    means: list[float | None] = []
    for figure in FIGURES:
        values = [getattr(getattr(row, side), figure) for row in rows]
        known = [value for value in values if value is not None]
        means.append(sum(known) / len(known) if known else None)
    return Figures(*means)


def classes(model: DemoModel) -> str:
    """Who has which classes, as a heat map, and the three kinds of classes in words."""
    counts, known = image_counts(model)
    rows = [f"Client {info.id}" for info in model.clients[:MOST_CLIENTS]]
    drawn = counts_picture(counts[:MOST_CLIENTS], rows, model.class_names, model.manifest.novel)
    base, novel = _listed(model, model.manifest.base), _listed(model, model.manifest.novel)
    return render("classes", known, base, novel, drawn)


def _listed(model: DemoModel, labels: Sequence[int], most: int = 30) -> str:
    shown = _words(", ".join(model.named(labels[:most])))
    return shown if len(labels) <= most else f"{shown} and {len(labels) - most} more"


# Pictures. pyplot is not used: it keeps figures in global state, and many threads draw.

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


LIGHT = _Look(text="#1f2937", back="#ffffff", low="#f1f5f9", high="#0f766e")
DARK = _Look(text="#e5e7eb", back="#1f2937", low="#273549", high="#2dd4bf")


def confusion_picture(counts: NDArray[Any], names: Sequence[str], title: str) -> Picture:
    """A confusion matrix: counts [C, C] of true class (row) and answer (column).

    Colour is the share of its row, so that classes with few images count as much as others.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    right = int(np.trace(counts))
    description = f"{title}: {right} of {int(counts.sum())} right, {len(names)} classes"
    return _draw(counts, shares, names, names, description, title=title)


def counts_picture(
    counts: NDArray[Any], rows: Sequence[str], names: Sequence[str], novel: Sequence[int]
) -> Picture:
    """Who has which classes: counts [clients, C]; names of novel classes are in italics."""
    # By their roots, so that a few images are told from none beside a client with thousands.
    shares = np.sqrt(counts / max(1, int(counts.max(initial=0))))
    said = []
    for row, name in enumerate(rows[:MOST_NUMBERS]):
        own = [f"{names[c]} {counts[row, c]}" for c in np.flatnonzero(counts[row]).tolist()]
        said.append(f"{name}: {', '.join(own)}")
    description = f"Training images of {len(rows)} clients by class: {'; '.join(said)}"
    return _draw(counts, shares, rows, names, description, italic=novel)


def _draw(
    counts: NDArray[Any],
    shares: NDArray[Any],
    rows: Sequence[str],
    columns: Sequence[str],
    description: str,
    *,
    title: str = "",
    italic: Collection[int] = (),
) -> Picture:
    """Counts in cells coloured by `shares`, 0 to 1, for both kinds of page.

    With a title it is a confusion matrix, whose axes have names too.
    """
    drawn = []
    for look in (LIGHT, DARK):
        figure, axes = _grid(shares, look, rows, columns)
        if title:
            axes.set_title(title, color=look.text, fontsize=11, loc="left", pad=10)
            axes.set_ylabel("true class", color=look.text, fontsize=9)
            axes.set_xlabel("answer", color=look.text, fontsize=9)
        for column, text in enumerate(axes.get_xticklabels()):
            if column in italic:
                text.set_fontstyle("italic")
        numbered = counts if max(counts.shape) <= MOST_NUMBERS else counts[:0]
        for row, column in np.argwhere(numbered):
            # Dark on bright and bright on dark.
            colour = look.back if shares[row, column] > 0.5 else look.text
            text = axes.text(column, row, f"{counts[row, column]}", color=colour, fontsize=8.5)
            text.set(ha="center", va="center")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=160)  # sharp on phones, whose pixels are small
        drawn.append(buffer.getvalue())
    return Picture(drawn[0], drawn[1], description)


def _grid(
    shares: NDArray[Any], look: _Look, rows: Sequence[str], columns: Sequence[str]
) -> tuple[Figure, Axes]:
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
    axes.set_yticks([])
    axes.set_xticks([])
    if len(rows) <= MOST_NAMES:
        axes.set_yticks(range(len(rows)), _short(rows), color=look.text, fontsize=9)
    if len(columns) <= MOST_NAMES:
        axes.set_xticks(range(len(columns)), _short(columns), color=look.text, fontsize=9)
        for text in axes.get_xticklabels():
            text.set(rotation=45, ha="right", rotation_mode="anchor")
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    if cell > 0.1:
        axes.grid(which="minor", color=look.back, linewidth=2)
    axes.tick_params(which="both", length=0)
    return figure, axes


def _short(names: Sequence[str]) -> list[str]:
    """Names as they stand on an axis."""
    found = []
    for name in names:
        short = name if len(name) <= SHORT else f"{name[: SHORT - 1]}…"
        # A dollar sign would start a formula.
        found.append(_words(short).replace("$", r"\$"))
    return found
