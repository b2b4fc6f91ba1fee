"""Many images at once: both models' answers, how often they are right, where they differ."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.types import Skipped

from .model import Kind

__all__ = ["FILTERS", "NAME_SETS", "Filter", "Gallery", "GalleryNames", "Judged"]

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


COLUMNS = (
    "image",
    "true_class",
    "to_this_client",
    "zero_shot",
    "zero_shot_probability",
    "personalized",
    "personalized_probability",
    "agree",
)


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

    def passes(self, chosen: Filter) -> bool:
        """Whether a filter shows it."""
        right = self.can_be_right and self.personalized == self.truth
        plain_right = self.can_be_right and self.zero_shot == self.truth
        return {
            "all": True,
            "differ": self.zero_shot != self.personalized,
            "gained": right and not plain_right,
            "lost": plain_right and not right,
            "wrong": self.can_be_right and not right and not plain_right,
        }[chosen]


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
        if chosen not in get_args(Filter):
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
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in self.rows:
            writer.writerow(
                [
                    _harmless(row.name),
                    _harmless(row.truth or ""),
                    row.kind or "",
                    _harmless(row.zero_shot),
                    f"{row.zero_shot_probability:.4f}",
                    _harmless(row.personalized),
                    f"{row.personalized_probability:.4f}",
                    "yes" if row.zero_shot == row.personalized else "no",
                ]
            )
        return stream.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without pictures."""
        return {
            "client": self.client,
            "names": self.names,
            "accuracy": self.figures(),
            "images": [
                {
                    "name": row.name,
                    "truth": row.truth,
                    "kind": row.kind,
                    "zero_shot": row.zero_shot,
                    "zero_shot_probability": row.zero_shot_probability,
                    "personalized": row.personalized,
                    "personalized_probability": row.personalized_probability,
                }
                for row in self.rows
            ],
            "skipped": [{"name": entry.path, "reason": entry.reason} for entry in self.skipped],
            "remarks": list(self.remarks),
            "seconds": self.seconds,
        }


def _harmless(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text
