"""Predictions as people and programs read them: a table, CSV, JSON lines or one JSON object."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO

from pfedmma_deploy.errors import UsageError

from .output import Output

if TYPE_CHECKING:
    from pfedmma_deploy.runtime import Prediction
    from pfedmma_deploy.types import Skipped

Format = Literal["table", "csv", "jsonl"]


class Writer(Protocol):
    """Takes what was found image by image; the last of `predictions` may be zero-shot's."""

    def found(self, predictions: Sequence[Prediction]) -> None:
        """One image's answers: the client's, and zero-shot's where they are compared."""
        ...

    def skipped(self, entry: Skipped) -> None:
        """An image that could not be read."""
        ...

    def finish(self) -> None:
        """All images are through."""
        ...


class JsonLines:
    """One JSON object a line, written at once: a prediction, or a path with why it was skipped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def found(self, predictions: Sequence[Prediction]) -> None:
        """A line like an entry of `predictions` in `--json`."""
        self._write(as_dict(predictions))

    def skipped(self, entry: Skipped) -> None:
        """A line `{"path", "skipped"}`."""
        self._write({"path": printable(entry.path), "skipped": entry.reason})

    def finish(self) -> None:
        """Everything is written already."""

    def _write(self, values: dict[str, Any]) -> None:
        print(json.dumps(values, ensure_ascii=False), file=self._stream, flush=True)


class Csv:
    """Comma-separated values with a heading, one image a row, written at once.

    A text that a spreadsheet would take for a formula (it begins with `=`, `+`, `-`, `@`, a tab or
    a line feed) gets an apostrophe in front, a path `./`, which changes nothing about the path.
    """

    def __init__(self, stream: TextIO, answers: int, *, compare: bool) -> None:
        """With room for `answers` classes an image, twice as many with `compare`."""
        self._stream, self._answers = stream, answers
        self._width = answers * (2 if compare else 1)
        self._rows = csv.writer(stream, lineterminator="\n")
        prefixes = ["", "zero_shot_"] if compare else [""]
        self._write(
            "path",
            "client",
            *(
                f"{prefix}{what}_{number}"
                for prefix in prefixes
                for number in range(1, answers + 1)
                for what in ("class", "probability")
            ),
            "skipped",
        )

    def found(self, predictions: Sequence[Prediction]) -> None:
        """A row with an empty last column."""
        answers = [
            value
            for prediction in predictions
            for score in prediction.top
            for value in (_harmless(score.name), f"{score.probability:.6f}")
        ]
        first = predictions[0]
        self._write(_harmless_path(first.source), _harmless(first.client), *answers, "")

    def skipped(self, entry: Skipped) -> None:
        """A row of path and reason."""
        nothing = [""] * (1 + 2 * self._width)
        self._write(_harmless_path(entry.path), *nothing, _harmless(entry.reason))

    def finish(self) -> None:
        """Everything is written already."""

    def _write(self, *cells: str) -> None:
        self._rows.writerow(cells)
        self._stream.flush()


class Table:
    """Aligned columns; held until the end, since widths depend on all rows."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._rows: list[list[str]] = []
        self._columns: list[str] = []

    def found(self, predictions: Sequence[Prediction]) -> None:
        """A row: the path, and what each of the models says."""
        first = predictions[0]
        self._columns = ["Image", f"Client {first.client}", "Zero-shot"][: 1 + len(predictions)]
        answers = (
            ", ".join(f"{score.name} {score.probability:.0%}" for score in prediction.top)
            for prediction in predictions
        )
        self._rows.append([printable(first.source), *answers])

    def skipped(self, entry: Skipped) -> None:
        """Nothing: it was said on stderr."""

    def finish(self) -> None:
        """Print it, where there is something."""
        if self._rows:
            self._output.table(self._columns, self._rows)


class OneObject:
    """`--json`: everything in one object, held until the end."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._predictions: list[dict[str, Any]] = []
        self._skipped: list[dict[str, str]] = []

    def found(self, predictions: Sequence[Prediction]) -> None:
        """An entry of `predictions`."""
        self._predictions.append(as_dict(predictions))

    def skipped(self, entry: Skipped) -> None:
        """An entry of `skipped`."""
        self._skipped.append({"path": printable(entry.path), "reason": entry.reason})

    def finish(self) -> None:
        """Print it."""
        self._output.result({"predictions": self._predictions, "skipped": self._skipped})


def as_dict(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """One image's answers, JSON-ready."""
    tops = [
        [{"class": score.name, "probability": score.probability} for score in prediction.top]
        for prediction in predictions
    ]
    first = predictions[0]
    values = {"path": printable(first.source), "client": first.client, "top": tops[0]}
    return values if len(tops) == 1 else {**values, "zero_shot": tops[1]}


@contextmanager
def destination(out: Path | None, stdout: TextIO) -> Iterator[TextIO]:
    """`stdout`, or a file that gets its name `out` only when the block has ended well.

    Raises:
        UsageError: `out` is no place for a file.
    """
    if out is None:
        yield stdout
        return
    target = out.resolve()
    if target.exists() and not target.is_file():
        raise UsageError(f"--out {out} is no regular file: name a new one, or one to replace")
    if not target.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}; make it first")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def printable(text: str) -> str:
    r"""A file name as text that any stream takes and no terminal obeys, odd parts as \x1b."""
    text = os.fsencode(text).decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def _harmless_path(path: str) -> str:
    text = printable(path)
    return f"./{text}" if text.startswith(("=", "+", "-", "@")) else text
