"""`pfedmma dedupe`: images of a folder that show the same."""

from __future__ import annotations

from typing import Annotated

from pfedmma_deploy.errors import UsageError

from .embed import BatchSize, Client, Device, Folder, IndexFile, Model, Strength, open_index
from .options import flag, with_output
from .output import Output
from .predict import printable


@with_output
def dedupe(
    output: Output,
    folder: Folder,
    model: Model = None,
    client: Client = None,
    strength: Strength = None,
    alike: Annotated[
        float, flag("Cosine from which two images count as the same picture.", "COSINE")
    ] = 0.98,
    index: IndexFile = None,
    batch_size: BatchSize = 32,
    device: Device = "auto",
) -> None:
    """List groups of images that show the same picture: copies, other sizes, other compression.

    The folder's index is made or updated first. Nothing is deleted or moved: of each group the
    largest file comes first.

    \b
    Examples:
      pfedmma dedupe photos
      pfedmma dedupe photos --alike 0.995 --json
    """
    # Written so that NaN does not pass.
    if not 0 < alike <= 1:
        raise UsageError(f"--alike is a cosine above 0 and at most 1, found {alike:g}: try 0.98")
    _, found, skipped = open_index(
        output, folder, model, client, strength, index, batch_size, device
    )
    groups = [
        [printable(str(folder / path)) for path in group] for group in found.duplicates(alike)
    ]
    rows = [[str(number), path] for number, group in enumerate(groups, start=1) for path in group]
    extra = len(rows) - len(groups)
    if rows:
        output.table(["Group", "Image"], rows)
    output.say(f"{len(found.paths):,} images, {extra:,} more than different pictures")
    output.result(
        {"images": len(found.paths), "alike": alike, "groups": groups, "skipped": skipped}
    )
