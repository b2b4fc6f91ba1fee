"""`pfedmma search`: images of a folder by words."""

from __future__ import annotations

from typing import Annotated

import typer

from pfedmma_deploy.errors import UsageError

from .embed import BatchSize, Client, Device, Folder, IndexFile, Model, Strength, open_index
from .options import flag, with_output
from .output import Output
from .predict import printable


@with_output
def search(
    output: Output,
    query: Annotated[str, typer.Argument(metavar="WORDS", help="What to look for, in English.")],
    folder: Folder,
    model: Model = None,
    client: Client = None,
    strength: Strength = None,
    top: Annotated[int, flag("Images to show.", "N", min=1)] = 10,
    index: IndexFile = None,
    batch_size: BatchSize = 32,
    device: Device = "auto",
) -> None:
    """Find images by words, as one client's model sees both.

    The folder's index is made or updated first. The words stand in the bundle's prompt, like a
    class name.

    \b
    Examples:
      pfedmma search "red car" photos --client 3
      pfedmma search "a dog on a beach" photos --top 50 --json
    """
    if not query.strip():
        raise UsageError('say in words what to look for, such as "red car"')
    classifier, found, skipped = open_index(
        output, folder, model, client, strength, index, batch_size, device
    )
    number = classifier.bundle.client_index(client or 0)
    view = number, classifier.bundle.strength_of(number, strength)
    (feature,) = classifier.text_features(view, (query.strip(),))
    rows: list[tuple[str, str]] = []
    results = []
    for path, cosine in found.search(feature, top):
        shown = printable(str(folder / path))
        rows.append((shown, f"{cosine:.3f}"))
        results.append({"path": shown, "cosine": cosine})
    output.table(["Image", "Cosine"], rows)
    client_id = classifier.clients[number].id
    output.result({"query": query, "client": client_id, "results": results, "skipped": skipped})
