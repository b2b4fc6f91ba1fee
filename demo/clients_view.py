"""The clients as HTML: tiles of figures, bars per client, who has which classes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pfedmma_deploy.runtime.manifest import Figures

from .clients import ClientRow, client_rows, image_counts
from .model import DemoModel
from .pictures import counts_picture
from .views import class_name, hint, picture

__all__ = ["accuracies", "classes", "traffic"]

MOST = 60
"""Clients that are shown; the means are over all of them."""
WORDS = {
    "local": ("Local", "its own test images, among the base names"),
    "base": ("Base", "test images of all base classes"),
    "novel": ("Novel", "classes that nobody trained on"),
}


def traffic(model: DemoModel) -> str:
    """How much was sent, in tiles."""
    history = model.manifest.history
    if history is None:
        return ""
    shared = history.parameters.get("shared", 0)
    total = sum(history.parameters.values())
    share = f"{100 * shared / total:.2g} % of the model" if total else ""
    tiles = (
        (f"{len(model.clients):,}", "clients", "each with a model of its own"),
        (f"{history.rounds:,}", "rounds", "of federated training"),
        (
            f"{history.bytes_up_per_client_round:,}",
            "bytes",
            f"sent by a client per round ({share}); no image ever leaves",
        ),
        (*_size(history.bytes_total), "sent in all: every client, every round, both ways"),
    )
    items = "".join(
        f'<div class="pf-stat"><b>{number} <i>{unit}</i></b><span>{text}</span></div>'
        for number, unit, text in tiles
    )
    return f'<div class="pf-stats">{items}</div>'


def accuracies(model: DemoModel) -> str:
    """Local, base and novel accuracy of every client, zero-shot beside personalized."""
    rows = [row for row in client_rows(model) if row.zero_shot and row.personalized]
    if not rows:
        return hint(
            "This bundle does not say how accurate its clients are. Export it from a finished run "
            "with `pfedmma export`, or measure them with `pfedmma evaluate`."
        )
    heads = "".join(f"<div><b>{name}</b><span>{text}</span></div>" for name, text in WORDS.values())
    body = _line("Mean", f"over {len(rows)} clients", *_means(rows))
    for row in rows[:MOST]:
        images = f"{row.images:,} images" if row.images is not None else ""
        assert row.zero_shot is not None and row.personalized is not None
        body += _line(f"Client {row.id}", images, row.zero_shot, row.personalized)
    more = f"<p>The first {MOST} of {len(rows)} clients are shown.</p>" if len(rows) > MOST else ""
    return (
        '<div class="pf-key"><span><i class="pf-side-plain"></i>zero-shot CLIP</span>'
        '<span><i class="pf-side-own"></i>personalized</span>'
        "<span>% of test images answered right</span></div>"
        f'<div class="pf-table"><div class="pf-row pf-head"><div></div>{heads}</div>{body}'
        f"</div>{more}"
    )


def _line(name: str, under: str, before: Figures, after: Figures) -> str:
    cells = "".join(
        _cell(WORDS[key][0], getattr(before, key), getattr(after, key)) for key in WORDS
    )
    return (
        f'<div class="pf-row"><div class="pf-who"><b>{escape(name)}</b>'
        f"<small>{escape(under)}</small></div>{cells}</div>"
    )


def _cell(name: str, before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return f'<div class="pf-cell"><em>{name}</em>not measured</div>'
    change = after - before
    sign = "+" if change > 0 else "&minus;"
    said = "±0" if abs(change) < 0.05 else f"{sign}{abs(change):.1f}"
    tone = "flat" if abs(change) < 1 else ("up" if change > 0 else "down")
    return (
        f'<div class="pf-cell"><em>{name}</em>'
        f'<div class="pf-pair"><div class="pf-bar pf-side-plain"><i style="width:{before:.1f}%">'
        f"</i></div><span>{before:.1f}</span></div>"
        f'<div class="pf-pair"><div class="pf-bar pf-side-own"><i style="width:{after:.1f}%">'
        f'</i></div><span>{after:.1f}</span></div><small class="pf-{tone}">{said}</small></div>'
    )


def _means(rows: Sequence[ClientRow]) -> tuple[Figures, Figures]:
    def mean(side: str, key: str) -> float | None:
        values = [getattr(getattr(row, side), key) for row in rows]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    before, after = (
        Figures(*(mean(side, key) for key in WORDS)) for side in ("zero_shot", "personalized")
    )
    return before, after


def classes(model: DemoModel) -> str:
    """Who has which classes, as a heat map, and the three kinds of classes in words."""
    counts, known = image_counts(model)
    base = [class_name(model.class_names[label]) for label in model.manifest.base]
    novel = [class_name(model.class_names[label]) for label in model.manifest.novel]
    what = (
        "Numbers are training images; an empty cell means that the client has none."
        if known
        else "1 marks a class that the client trained on; the bundle has no counts."
    )
    rows = [f"Client {info.id}" for info in model.clients[:MOST]]
    drawn = counts_picture(
        counts[:MOST], rows, model.class_names[: counts.shape[1]], model.manifest.novel
    )
    return (
        f'<p class="pf-text">{what} Novel classes are in italics: no client has them. '
        f"Base: {_listed(base)}. Novel: {_listed(novel) or 'none'}.</p>{picture(drawn)}"
    )


def _listed(names: Sequence[str], most: int = 30) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _size(count: int) -> tuple[str, str]:
    """A number of bytes as number and unit."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g}", unit
    return f"{count}", "bytes"
