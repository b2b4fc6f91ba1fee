"""Measured tables under the environment they were measured in: Markdown for people, JSON beside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfedmma_deploy.store.files import write_bytes
from pfedmma_deploy.system import Environment

__all__ = ["Section", "environment_lines", "markdown_report", "markdown_table", "write_report"]


@dataclass(frozen=True)
class Section:
    """One table of the report."""

    title: str
    note: str
    """What a reader must know to read it."""
    columns: Sequence[str]
    cells: Sequence[Sequence[str]]
    reasons: Sequence[str]
    """What was not measured, and why."""


IN_TURNS = (
    "Rates are medians of short windows that all subjects take in turns, with quartiles; a ratio "
    "is the median of those within each round."
)


def markdown_report(
    title: str,
    made_by: str,
    environment: Environment,
    sections: Sequence[Section],
    how: str = IN_TURNS,
) -> str:
    """All tables, below the command that made them, how they were measured, and where."""
    parts = [
        f"# {title}",
        f"Made by `{made_by}`. {how}",
        environment_lines(environment),
    ]
    explained = set()
    for section in sections:
        parts.append(f"## {section.title}")
        if section.note not in explained:
            explained.add(section.note)
            parts.append(section.note)
        parts.append(markdown_table(section.columns, section.cells))
        parts += [f"Not measured: {reason}" for reason in section.reasons]
    return "\n\n".join(parts) + "\n"


def environment_lines(environment: Environment) -> str:
    """The environment as a Markdown list."""
    values = environment.to_dict()
    memory, load = environment.memory, environment.load
    lines = [
        f"- Processor: {environment.cpu} ({', '.join(environment.instructions) or 'unknown'}), "
        f"{environment.cores} cores, {environment.threads} threads used"
        + (f", {memory / 1e9:.0f} GB" if memory else ""),
        f"- GPU: {environment.gpu or 'none'}",
        f"- System: {environment.system}, Python {environment.python}",
        "- " + ", ".join(f"{name} {text}" for name, text in values["versions"].items()),
        f"- Measured {environment.date}"
        + (f"; load of the machine before: {load:.2f}" if load is not None else ""),
    ]
    return "\n".join(lines)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    head = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)])


def write_report(folder: Path, name: str, text: str, values: Mapping[str, Any]) -> list[Path]:
    """Write `name.md` and `name.json` into `folder`; returns both paths."""
    files = [Path(folder) / f"{name}.md", Path(folder) / f"{name}.json"]
    write_bytes(files[0], text.encode())
    write_bytes(files[1], (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())
    return files
