"""Options that several commands share, and what they stand for when they are left out."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfedmma_deploy.config import Scalar
from pfedmma_deploy.errors import BundleError, UsageError

if TYPE_CHECKING:
    from pfedmma_deploy.store.run import Run

EXPORTS = Path("exports")
"""Where `pfedmma export` writes, below the current folder."""

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="Show warnings of libraries, and where an error arose.")
]
RunFolder = Annotated[
    Path | None,
    typer.Option("--run", metavar="DIR", help="Run folder. [default: the newest in runs/]"),
]
Preset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Values to start from: paper (the defaults), or quickstart (for pfedmma-tiny).",
    ),
]


def open_run(folder: Path | None) -> Run:
    """The run in `folder`, or else the newest. Raises `StoreError`, which names what makes one."""
    from pfedmma_deploy.store.run import Run, newest_run

    return newest_run() if folder is None else Run.open(folder)


def find_bundle(folder: Path | None) -> Path:
    """`folder`, or else the newest export. Raises `BundleError`, which names what makes one."""
    if folder is not None:
        return folder
    manifests = EXPORTS.glob("*/manifest.json")
    newest = max(manifests, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise BundleError(
            f"There is no exported model under {EXPORTS.resolve()}: make one with `pfedmma export`"
            " (or all at once with `pfedmma quickstart`), or name one with --model."
        )
    return newest.parent


def split_names(text: str | None) -> list[str] | None:
    """Comma-separated names without the spaces around them; None stays None."""
    if text is None:
        return None
    return [name.strip() for name in text.split(",") if name.strip()]


def free_folder(data: str) -> Path:
    """`runs/<data>`, with a number behind it where that is taken."""
    name = Path(data).resolve().name
    if not name:
        raise UsageError(f"no run folder can be named after {data!r}: name one with --out")
    candidates = (Path("runs", name if n == 1 else f"{name}-{n}") for n in itertools.count(1))
    return next(path for path in candidates if not path.exists())


def parse_settings(settings: Sequence[str] | None) -> dict[str, Scalar] | None:
    """`["rank=8", "share=AB"]` as `{"rank": 8, "share": "AB"}`; None stays None.

    Raises:
        UsageError: one is not NAME=VALUE.
    """
    if settings is None:
        return None
    found: dict[str, Scalar] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not name or not equals:
            raise UsageError(f"--set takes NAME=VALUE, such as rank=8, not {setting!r}.")
        found[name] = _scalar(text)
    return found


def _scalar(text: str) -> Scalar:
    """A value as TOML would read it; what is none of these is text."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text
