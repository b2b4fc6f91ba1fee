"""Many images at once: both models' answers, how often they are right, where they differ.

The examples of the Compare tab come from here too: they are the first images of the sample whose
answers meet a rule.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pfedmma_deploy.errors import DataError, ImageError, UsageError
from pfedmma_deploy.runtime.manifest import ClientInfo
from pfedmma_deploy.types import Skipped

from .compare import among
from .model import ClassSet, DemoModel, Kind
from .uploads import Item, sample_items, thumbnail

BATCH = 16
"""Images per call; each is one row for zero-shot and one for the client."""
MOST_EXAMPLES = 240
"""Test images that are looked at for examples; a rule that none of them meets has none."""

GalleryNames = Literal["measured", "all", "seen", "base", "novel"]
NAME_SETS: dict[GalleryNames, str] = {
    "measured": "As measured: base or novel names",
    "all": "All classes for every image",
    "seen": "Seen here: classes that this client trained on",
    "base": "Base: classes that some client trained on",
    "novel": "Novel: classes that nobody trained on",
}
"""The names that an image's answer is chosen from."""

Filter = Literal["all", "differ", "gained", "lost", "wrong"]
FILTERS: dict[Filter, str] = {
    "all": "All",
    "differ": "They differ",
    "gained": "Personalized right, zero-shot wrong",
    "lost": "Zero-shot right, personalized wrong",
    "wrong": "Both wrong",
}

Outcome = Literal["gained", "right", "lost", "wrong"]
RULES: tuple[tuple[str, Kind | None, Outcome], ...] = (
    ("Seen class: only personalized is right", "seen", "gained"),
    ("Seen class: both are right", "seen", "right"),
    ("Novel class: both are right", "novel", "right"),
    ("Novel class: only personalized is right", "novel", "gained"),
    ("Novel class: only zero-shot is right", "novel", "lost"),
    ("Both are wrong", None, "wrong"),
)
"""What the examples show, in the order in which they stand: right answers and wrong ones alike."""


@dataclass(frozen=True)
class Judged:
    """One image and what both models say about it."""

    name: str
    truth: str | None
    """Name of its true class; None where it is not known."""
    kind: Kind | None
    """What the true class is to the client."""
    zero_shot: str
    zero_shot_probability: float
    personalized: str
    personalized_probability: float
    can_be_right: bool
    """Whether the true class is known and among the names."""
    picture: bytes = field(repr=False)
    """A small PNG or JPEG."""

    @property
    def outcome(self) -> Outcome | None:
        """Who is right; None where nobody can be."""
        if not self.can_be_right:
            return None
        if self.personalized == self.truth:
            return "right" if self.zero_shot == self.truth else "gained"
        return "lost" if self.zero_shot == self.truth else "wrong"

    def passes(self, chosen: Filter) -> bool:
        """Whether a filter shows it."""
        if chosen == "differ":
            return self.zero_shot != self.personalized
        return chosen in {"all", self.outcome}


@dataclass(frozen=True)
class Gallery:
    """Many images, judged by zero-shot CLIP and by one client."""

    client: str
    names: GalleryNames
    rows: tuple[Judged, ...]
    skipped: tuple[Skipped, ...]
    remarks: tuple[str, ...]
    seconds: float
    order: tuple[str, ...]
    """All class names in label order."""

    def choose(self, chosen: Filter) -> list[Judged]:
        """The images that a filter shows. Raises `UsageError` for an unknown filter."""
        if chosen not in FILTERS:
            raise UsageError(f"There is no filter {chosen!r}; there are {', '.join(FILTERS)}.")
        return [row for row in self.rows if row.passes(chosen)]

    def figures(self) -> dict[str, dict[str, float | int]]:
        """Accuracy in percent of both models, by what the true class is to the client, and of all.

        Only images whose true class is known and among the names count.
        """
        found: dict[str, dict[str, float | int]] = {}
        counted = [row for row in self.rows if row.can_be_right]
        for group in ("seen", "elsewhere", "novel", "all"):
            rows = [row for row in counted if group in {row.kind, "all"}]
            if rows:
                found[group] = {
                    "images": len(rows),
                    "zero_shot": 100 * sum(r.zero_shot == r.truth for r in rows) / len(rows),
                    "personalized": 100 * sum(r.personalized == r.truth for r in rows) / len(rows),
                }
        return found

    def confusion(self, of: Literal["zero_shot", "personalized"]) -> tuple[NDArray[Any], list[str]]:
        """Counts int64 [C, C] of true class (row) and answer (column), and the C names.

        The names are those that occur, in the order of the bundle's labels, typed ones never.
        """
        counted = [row for row in self.rows if row.can_be_right]
        occurring = {row.truth for row in counted} | {getattr(row, of) for row in counted}
        names = [name for name in self.order if name in occurring]
        place = {name: i for i, name in enumerate(names)}
        counts = np.zeros((len(names), len(names)), np.int64)
        for row in counted:
            counts[place[str(row.truth)], place[getattr(row, of)]] += 1
        return counts, names

    def csv(self) -> str:
        """One line per image, with a heading."""
        lines = []
        for row in self.rows:
            line = {
                "image": row.name,
                "true_class": row.truth or "",
                "to_this_client": row.kind or "",
                "zero_shot": row.zero_shot,
                "zero_shot_probability": f"{row.zero_shot_probability:.4f}",
                "personalized": row.personalized,
                "personalized_probability": f"{row.personalized_probability:.4f}",
                "agree": "yes" if row.zero_shot == row.personalized else "no",
            }
            lines.append({column: _harmless(text) for column, text in line.items()})
        stream = io.StringIO()
        # `judge` never gives a gallery without images.
        writer = csv.DictWriter(stream, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return stream.getvalue()

    def to_dict(self, chosen: Filter = "all") -> dict[str, Any]:
        """JSON-ready, without pictures, with the images that a filter shows."""
        images = []
        for row in self.choose(chosen):
            values = asdict(row)
            del values["picture"], values["can_be_right"]
            images.append(values)
        return {
            "client": self.client,
            "names": self.names,
            "accuracy": self.figures(),
            "images": images,
            "skipped": [{"name": entry.path, "reason": entry.reason} for entry in self.skipped],
            "remarks": list(self.remarks),
            "seconds": self.seconds,
        }


def _harmless(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text


def judge(
    model: DemoModel,
    items: Sequence[Item],
    client: str,
    *,
    names: GalleryNames = "measured",
    remarks: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Gallery:
    """Ask zero-shot CLIP and one client about many images.

    Args:
        model: the bundle.
        items: the images; those that cannot be read are left out and listed with the reason.
        client: the client's id.
        names: what an image's answer is chosen from; `measured` is the protocol of
            `pfedmma evaluate`, and all names where the true class is not known.
        remarks: what else should be said about the images.
        progress: called with images done and images in all.

    Raises:
        UsageError: an unknown client or set of names.
        DataError: not one image can be read.
    """
    if names not in NAME_SETS:
        raise UsageError(f"There is no set of names {names!r}; there are {', '.join(NAME_SETS)}.")
    info = model.client(client)
    started = time.perf_counter()
    rows: list[Judged] = []
    skipped: list[Skipped] = []
    for start in range(0, len(items), BATCH):
        chunk = items[start : start + BATCH]
        rows += _judge_chunk(model, chunk, info, names, skipped)
        if progress is not None:
            progress(start + len(chunk), len(items))
    if not rows:
        first = skipped[0] if skipped else Skipped("none", "There were none.")
        raise DataError(
            f"None of the {len(items)} images can be read. {first.path}: {first.reason}"
        )
    seconds = time.perf_counter() - started
    return Gallery(
        client, names, tuple(rows), tuple(skipped), tuple(remarks), seconds, model.class_names
    )


def _judge_chunk(
    model: DemoModel,
    chunk: Sequence[Item],
    client: ClientInfo,
    names: GalleryNames,
    skipped: list[Skipped],
) -> Iterator[Judged]:
    """What both models say about a few images, in one call; those not readable join `skipped`."""
    read = []
    for item in chunk:
        try:
            image = item.read()
            read.append((item, model.pixels(image), thumbnail(image)))
        except ImageError as error:
            skipped.append(Skipped(item.name, str(error)))
    # Each image twice in a row: once for zero-shot, once for the client.
    pixels = [one for _, one, _ in read for _ in range(2)]
    found = model.classifier.predict(
        pixels, [0, client.index] * len(read), top_k=len(model.class_names), batch_size=2 * BATCH
    )
    for row, (item, _, picture) in enumerate(read):
        # Known names are scored once; a set of them is a selection of these scores.
        offered = model.names(_class_set(model, item, names), client)
        plain, own = (among(one.top, offered)[0] for one in found[2 * row : 2 * row + 2])
        truth = None if item.label is None else model.class_names[item.label]
        yield Judged(
            name=item.name,
            truth=truth,
            kind=None if truth is None else model.kind(truth, client),
            zero_shot=plain.name,
            zero_shot_probability=plain.probability,
            personalized=own.name,
            personalized_probability=own.probability,
            can_be_right=truth in offered,
            picture=picture,
        )


def _class_set(model: DemoModel, item: Item, names: GalleryNames) -> ClassSet:
    """The names to choose from for one image."""
    if names != "measured":
        return names
    if item.label is None:
        return "all"
    return "novel" if model.is_novel(item.label) else "base"


@dataclass(frozen=True)
class Example:
    """An image to click."""

    caption: str
    name: str
    image: Image.Image
    thumbnail: bytes = field(repr=False)
    truth: str
    class_set: ClassSet
    """The names that it was judged among: base or novel, as accuracy is measured."""


def find_examples(model: DemoModel, client: str) -> list[Example]:
    """For each rule the first test image of the sample that meets it, classes in turn.

    Judged as accuracy is measured: images of base classes among the base names, of novel classes
    among the novel names. Empty where no sample suits the model.
    """
    info = model.client(client)
    if model.sample is None:
        return []
    found: dict[str, Example] = {}
    items = iter(sample_items(model, MOST_EXAMPLES))
    while len(found) < len(RULES) and (chunk := list(islice(items, BATCH))):
        rows = _judge_chunk(model, chunk, info, "measured", [])
        for item, row in zip(chunk, rows, strict=True):
            for caption, kind, outcome in RULES:
                if caption not in found and kind in {None, row.kind} and outcome == row.outcome:
                    class_set = _class_set(model, item, "measured")
                    found[caption] = Example(
                        caption, item.name, item.read(), row.picture, str(row.truth), class_set
                    )
    return [found[caption] for caption, _, _ in RULES if caption in found]
