"""Accuracies as tables for people; the same dictionaries are what `--json` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .output import Output, Row

COLUMNS = ("local", "base", "novel", "hm2", "hm3")
HEADINGS = ("Local", "Base", "Novel", "HM2", "HM3")


def accuracy_row(name: str, accuracy: Mapping[str, float | None]) -> Row:
    """One line of figures in percent."""
    return [name, *(accuracy[column] for column in COLUMNS)]


def gain_row(before: Mapping[str, float | None], after: Mapping[str, float | None]) -> Row:
    """The differences in percentage points, with their sign."""
    pairs = [(before[column], after[column]) for column in COLUMNS]
    return [
        "gain",
        *(f"{b - a:+.1f}" if a is not None and b is not None else None for a, b in pairs),
    ]


def compare(output: Output, rows: Mapping[str, Mapping[str, float | None]], title: str) -> None:
    """A row of accuracies per name, and the gain of the last over the first."""
    first, *_, last = rows.values()
    lines = [accuracy_row(name, accuracy) for name, accuracy in rows.items()]
    output.table(["Accuracy in %", *HEADINGS], [*lines, gain_row(first, last)], title)


def each_client(output: Output, clients: Mapping[str, Mapping[str, Any]]) -> None:
    """Zero-shot and personalized local accuracy of every client, with its base and novel."""
    rows: list[Row] = [
        [
            client,
            figures["zero_shot"]["local"],
            figures["personalized"]["local"],
            figures["personalized"]["base"],
            figures["personalized"]["novel"],
        ]
        for client, figures in clients.items()
    ]
    output.table(
        ["Client", "Zero-shot local", "Local", "Base", "Novel"], rows, "Clients, accuracy in %"
    )
