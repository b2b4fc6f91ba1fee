"""`pfedmma embed`: the index of a folder's images, by which `search` and `dedupe` find them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import find_bundle, flag, with_output
from .output import Output
from .predict import printable

if TYPE_CHECKING:
    from pfedmma_deploy.runtime import Classifier
    from pfedmma_deploy.runtime.index import Index
    from pfedmma_deploy.types import Skipped

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Images, at any depth.")]
Model = Annotated[Path | None, flag("Exported bundle. [default: the newest in exports/]", "DIR")]
Client = Annotated[str | None, flag("Whose model. [default: zero-shot]", "ID")]
Strength = Annotated[
    float | None, flag("How much of what the client learned counts. [default: its own]", "A")
]
IndexFile = Annotated[
    Path | None,
    flag("Where the index is. [default: below FOLDER/.pfedmma]", "FILE", "--index"),
]
BatchSize = Annotated[int, flag("Images per call of the model.", "N", min=1)]
Device = Annotated[str, flag("Where to compute.", "auto|cpu|cuda|tensorrt")]


@with_output
def embed(
    output: Output,
    folder: Folder,
    model: Model = None,
    client: Client = None,
    strength: Strength = None,
    index: IndexFile = None,
    batch_size: BatchSize = 32,
    device: Device = "auto",
) -> None:
    """Make or update the index of a folder of images.

    Only new and changed images are computed; a call that was stopped goes on where it last saved.
    `search` and `dedupe` do this by themselves.

    \b
    Examples:
      pfedmma embed photos
      pfedmma embed photos --client 3 --index /tmp/photos.npz
    """
    started = time.perf_counter()
    classifier, found, skipped = open_index(
        output, folder, model, client, strength, index, batch_size, device
    )
    images = len(found.paths)
    output.say(f"{folder}: {images:,} images in the index, {found.computed:,} of them computed now")
    output.note(f'Next: pfedmma search "a red car" {folder}, or pfedmma dedupe {folder}')
    output.result(
        {
            "folder": str(folder),
            "model": str(classifier.bundle.path),
            "images": images,
            "computed": found.computed,
            "skipped": skipped,
            "seconds": time.perf_counter() - started,
        }
    )


def open_index(
    output: Output,
    folder: Path,
    model: Path | None,
    client: str | None,
    strength: float | None,
    index: Path | None,
    batch_size: int,
    device: str,
) -> tuple[Classifier, Index, list[dict[str, Any]]]:
    """The classifier, the folder's index, up to date, and what could not be read."""
    from pfedmma_deploy.runtime import Classifier
    from pfedmma_deploy.runtime.index import update_index

    skipped: list[dict[str, Any]] = []

    def on_skip(one: Skipped) -> None:
        skipped.append({"path": printable(one.path), "reason": one.reason})
        output.note(f"skipped {printable(one.path)}: {one.reason}")

    classifier = Classifier.load(find_bundle(model), device)
    found = update_index(
        classifier,
        folder,
        client or 0,
        strength=strength,
        file=index,
        batch_size=batch_size,
        on_skip=on_skip,
        progress=output.progress,
    )
    return classifier, found, skipped
