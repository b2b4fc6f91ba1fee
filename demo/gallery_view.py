"""The gallery as HTML: figures, a grid of judged images, what was left out."""

from __future__ import annotations

from html import escape

from .gallery import FILTERS, Filter, Gallery, Judged
from .pictures import confusion_picture
from .views import class_name, client_title, hint, inline_image, kind_tag, picture

__all__ = ["confusions", "figures", "grid"]

GROUPS = {
    "seen": ("Seen here", "classes that this client trained on"),
    "elsewhere": ("Seen elsewhere", "classes that only other clients trained on"),
    "novel": ("Novel", "classes that nobody trained on"),
    "all": ("All", "all images whose class is known"),
}
MOST_SKIPPED = 8


def figures(gallery: Gallery) -> str:
    """Accuracy of both models by group, and what should be said about the images."""
    own = escape(client_title(gallery.client))
    cards = "".join(
        f'<div class="pf-tile pf-tile-{group}"><h4>{GROUPS[group][0]}</h4>'
        f"<p>{GROUPS[group][1]}</p>"
        f"{_meter('Zero-shot', float(found['zero_shot']), 'plain')}"
        f"{_meter(own, float(found['personalized']), 'own')}"
        f"<small>{found['images']:,} images, "
        f"{_points(float(found['personalized']) - float(found['zero_shot']))}</small></div>"
        for group, found in gallery.figures().items()
    )
    differ = len(gallery.choose("differ"))
    said = [
        f"{len(gallery.rows):,} images in {gallery.seconds:.1f} s; the two models differ on "
        f"{differ:,} of them.",
        *gallery.remarks,
    ]
    notes = "".join(f"<p>{escape(text)}</p>" for text in said)
    return (
        f'<div class="pf-tiles">{cards}</div><div class="pf-notes">{notes}</div>{_skipped(gallery)}'
    )


def _meter(name: str, percent: float, side: str) -> str:
    return (
        f'<div class="pf-line"><span class="pf-name">{name}</span>'
        f'<span class="pf-percent">{percent:.1f} %</span></div>'
        f'<div class="pf-bar pf-side-{side}"><i style="width:{percent:.1f}%"></i></div>'
    )


def _points(change: float) -> str:
    if abs(change) < 0.05:
        return "no change"
    return f"{'+' if change > 0 else '&minus;'}{abs(change):.1f} points"


def _skipped(gallery: Gallery) -> str:
    if not gallery.skipped:
        return ""
    lines = "".join(
        f"<li><b>{escape(entry.path)}</b>: {escape(entry.reason)}</li>"
        for entry in gallery.skipped[:MOST_SKIPPED]
    )
    more = len(gallery.skipped) - MOST_SKIPPED
    if more > 0:
        lines += f"<li>and {more:,} more</li>"
    count = len(gallery.skipped)
    what = "1 image was" if count == 1 else f"{count:,} images were"
    return f'<div class="pf-problem pf-skipped"><div>{what} left out:<ul>{lines}</ul></div></div>'


def grid(gallery: Gallery, chosen: Filter, most: int) -> tuple[str, bool]:
    """The images that a filter shows, at most `most`, and whether there are more."""
    rows = gallery.choose(chosen)
    count = f"“{FILTERS[chosen]}”: {len(rows):,} of {len(gallery.rows):,} images"
    if not rows:
        return hint(f"{count}. Nothing to see here: choose another filter."), False
    cards = "".join(_card(row) for row in rows[:most])
    shown = f", {most} shown" if len(rows) > most else ""
    html = f'<p class="pf-count">{escape(count)}{shown}</p><div class="pf-grid">{cards}</div>'
    return html, len(rows) > most


def _card(row: Judged) -> str:
    true = (
        f'<div class="pf-name">{class_name(row.truth)}</div>{kind_tag(row.kind)}'
        if row.truth is not None
        else '<div class="pf-name pf-unknown">class not known</div>'
    )
    mark = "=" if row.zero_shot == row.personalized else "≠"
    words = "they agree" if mark == "=" else "they differ"
    return (
        f'<figure class="pf-card" title="{escape(row.name)}">'
        f"{inline_image(row.picture, row.truth or row.name)}"
        f'<span class="pf-agree pf-agree-{"same" if mark == "=" else "differ"}" title="{words}">'
        f"{mark}</span><figcaption><div>{true}</div>"
        f"{_said('zero-shot', row.zero_shot, row.zero_shot_probability, row)}"
        f"{_said('personalized', row.personalized, row.personalized_probability, row)}"
        "</figcaption></figure>"
    )


def _said(who: str, name: str, probability: float, row: Judged) -> str:
    mark = ""
    if row.can_be_right:
        right = name == row.truth
        mark = f'<b class="pf-{"right" if right else "wrong"}">{"✓" if right else "✗"}</b> '
    return (
        f'<div class="pf-said"><small>{who}</small><span>{mark}{class_name(name)} '
        f"{100 * probability:.0f} %</span></div>"
    )


def confusions(gallery: Gallery) -> str:
    """Both confusion matrices as pictures, side by side where there is room."""
    if not gallery.figures():
        return hint(
            "A confusion matrix needs images whose true class is known: a zip with one folder per "
            "class, or the sample."
        )
    drawn = (
        picture(confusion_picture(*gallery.confusion("zero_shot"), "Zero-shot CLIP")),
        picture(
            confusion_picture(*gallery.confusion("personalized"), client_title(gallery.client))
        ),
    )
    return f'<div class="pf-pictures">{"".join(drawn)}</div>'
