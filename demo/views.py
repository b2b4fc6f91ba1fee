"""What the page shows, as HTML. Everything that comes from outside is escaped here."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from .compare import Answer, Comparison, ModelAnswers
from .examples import Found
from .inputs import thumbnail
from .model import CLASS_SETS, KINDS, DemoModel, Kind
from .pictures import Picture

__all__ = [
    "client_card",
    "client_title",
    "comparison",
    "examples",
    "hint",
    "inline_image",
    "kind_tag",
    "legend",
    "picture",
    "problem",
]

ZERO_SHOT_TITLE = "Zero-shot CLIP"


def hint(text: str) -> str:
    """What stands where there is nothing to see yet."""
    return f'<div class="pf-hint" role="note">{escape(text)}</div>'


def problem(text: str) -> str:
    """A sentence about what went wrong."""
    return (
        '<div class="pf-problem" role="alert"><span class="pf-mark">!</span>'
        f"<span>{escape(text)}</span></div>"
    )


def client_title(client: str) -> str:
    """How a model is called."""
    return ZERO_SHOT_TITLE if client == "zero-shot" else f"Client {client}"


def kind_tag(kind: Kind | None) -> str:
    """A class's relation to the client, in colour and in words."""
    return "" if kind is None else f'<span class="pf-tag pf-{kind}">{KINDS[kind]}</span>'


def legend() -> str:
    """What the tags mean."""
    parts: dict[Kind, str] = {
        "seen": "this client trained on it",
        "elsewhere": "only other clients did",
        "novel": "nobody did",
    }
    items = "".join(f"<span>{kind_tag(kind)} {text}</span>" for kind, text in parts.items())
    return f'<div class="pf-legend">{items}</div>'


def class_name(name: str) -> str:
    """A class name for people: underscores of folder names are spaces."""
    return escape(name.replace("_", " "))


def comparison(found: Comparison) -> str:
    """Verdict, one column per model, and the badge."""
    columns = "".join(_column(found, answers) for answers in found.models)
    notes = "".join(f"<p>{escape(text)}</p>" for text in found.remarks)
    return (
        f'<div class="pf-result">{_verdict(found)}<div class="pf-columns">{columns}</div>'
        f'{legend()}<div class="pf-notes">{notes}</div>{_badge(found)}</div>'
    )


def _verdict(found: Comparison) -> str:
    plain, own = found.zero_shot, found.personalized
    client = escape(client_title(own.client))
    first, second = class_name(plain.top[0].name), class_name(own.top[0].name)
    mark, style = ("=", "same") if found.agree else ("≠", "differ")
    said = (
        f"Both say <b>{first}</b>"
        if found.agree
        else (f"They differ: zero-shot says <b>{first}</b>, {client} says <b>{second}</b>")
    )
    if own.is_right is not None:
        if own.is_right and not plain.is_right:
            style, said = "good", f"Only {client} is right: <b>{second}</b>, not {first}"
        elif plain.is_right and not own.is_right:
            style, said = "bad", f"Only zero-shot is right: <b>{first}</b>, not {second}"
        elif own.is_right:
            style, said = "good", f"Both are right: <b>{first}</b>"
        else:
            style = "bad"
            said = f"Both are wrong: {first}" + ("" if found.agree else f" and {second}")
            said += f", not <b>{class_name(found.truth or '')}</b>"
    elif found.truth:
        said += f". The true class, {class_name(found.truth)}, is none of these names"
    words = "agree" if found.agree else "differ"
    return (
        f'<div class="pf-verdict pf-verdict-{style}"><span class="pf-mark" title="{words}">{mark}'
        f"</span><span>{said}</span></div>"
    )


def _column(found: Comparison, answers: ModelAnswers) -> str:
    plain = answers.client == "zero-shot"
    side = "plain" if plain else "own"
    under = "as it was before training" if plain else "personalized"
    rows = "".join(_answer(answer, found.truth) for answer in answers.top)
    mark = {True: ("✓ right", "right"), False: ("✗ wrong", "wrong"), None: ("", "")}[
        answers.is_right
    ]
    said = f'<span class="pf-judged pf-{mark[1]}">{mark[0]}</span>' if mark[0] else ""
    return (
        f'<section class="pf-column pf-column-{side}" data-client="{escape(answers.client)}">'
        f"<header><div><h3>{escape(client_title(answers.client))}</h3><p>{under}</p></div>{said}"
        f"</header><ol>{rows}</ol></section>"
    )


def _answer(answer: Answer, truth: str | None) -> str:
    percent = 100 * answer.probability
    true = ' <span class="pf-true">true class</span>' if answer.name == truth else ""
    return (
        f'<li><div class="pf-line"><span class="pf-name">{class_name(answer.name)}</span>'
        f"{kind_tag(answer.kind)}{true}"
        f'<span class="pf-percent">{percent:.0f} %</span></div>'
        f'<div class="pf-bar pf-{answer.kind}"><i style="width:{percent:.1f}%"></i></div></li>'
    )


def _badge(found: Comparison) -> str:
    device = {"cpu": "CPU", "cuda": "GPU"}.get(found.device, found.device)
    said = (
        device,
        found.precision,
        f"{found.milliseconds:.0f} ms for {len(found.models)} models in one call",
        f"{found.names} names: {CLASS_SETS[found.class_set].lower()}",
    )
    items = "".join(f"<span>{escape(text)}</span>" for text in said)
    return f'<div class="pf-badge" id="compare-badge">{items}</div>'


def client_card(model: DemoModel, client: str) -> str:
    """What a client has seen, and what its model reaches."""
    from .clients import client_rows

    info = model.client(client)
    row = next(row for row in client_rows(model) if row.id == client)
    shown = 24
    tags = "".join(
        f'<span class="pf-tag pf-seen">{class_name(name)}</span>' for name in row.seen[:shown]
    )
    if len(row.seen) > shown:
        tags += f"<span>and {len(row.seen) - shown} more</span>"
    count = f"{row.images:,} images of " if row.images is not None else ""
    classes = "1 class" if len(info.seen) == 1 else f"{len(info.seen)} classes"
    figures = ""
    if row.zero_shot and row.personalized:
        pairs = (
            ("its own test images", row.zero_shot.local, row.personalized.local),
            ("novel classes", row.zero_shot.novel, row.personalized.novel),
        )
        figures = "".join(
            f'<div class="pf-figure"><b>{after:.0f} %</b> on {what}'
            f"<small>zero-shot {before:.0f} %</small></div>"
            for what, before, after in pairs
            if before is not None and after is not None
        )
    return (
        f'<div class="pf-client"><p>Client {escape(client)} trained on {count}{classes}:</p>'
        f'<div class="pf-tags">{tags}</div><div class="pf-figures">{figures}</div></div>'
    )


def examples(found: Sequence[Found]) -> str:
    """Pictures to click."""
    if not found:
        return hint(
            "This model was trained on images that are not part of the package, so there are no "
            "examples to click: drop a picture of your own."
        )
    cards = "".join(
        f'<button type="button" class="pf-example" data-example="{number}">'
        f"{inline_image(thumbnail(one.image), one.truth)}"
        f"<span><b>{class_name(one.truth)}</b>{escape(one.caption)}</span></button>"
        for number, one in enumerate(found)
    )
    return f'<div class="pf-examples">{cards}</div>'


def picture(drawn: Picture) -> str:
    """A picture that follows the page from light to dark."""
    return (
        f'<div class="pf-picture"><span class="pf-when-light">'
        f"{inline_image(drawn.light, drawn.description)}</span>"
        f'<span class="pf-when-dark">{inline_image(drawn.dark, drawn.description)}</span></div>'
    )


def inline_image(data: bytes, description: str) -> str:
    """An image inside the page: no file, no address."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    code = base64.b64encode(data).decode()
    return f'<img alt="{escape(description)}" src="data:image/{kind};base64,{code}">'
