"""`pfedmma personalize`: one client's own model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from .options import RunFolder, flag, open_run, switch, with_output
from .output import Output, print_accuracies


@with_output
def personalize(
    output: Output,
    client: Annotated[str, flag("A client of the run, or a new name together with --data.", "ID")],
    run: RunFolder = None,
    data: Annotated[
        Path | None, flag("Images of a brand-new client, one folder per class.", "DIR")
    ] = None,
    epochs: Annotated[int, flag("Passes over the client's images.", "N", min=1)] = 4,
    lr: Annotated[float | None, flag("Learning rate. [default: the run's]", "RATE")] = None,
    train_shared: Annotated[
        bool, switch("--train-shared", "Also train this client's copy of what is shared.")
    ] = False,
) -> None:
    """Bring one client to its own model.

    Fine-tunes the client's local adapters; the shared projection stays as the federation left it,
    unless --train-shared gives the client a copy of its own.

    \b
    Examples:
      pfedmma personalize --client 3
      pfedmma personalize --client 3 --run runs/sites --epochs 5
      pfedmma personalize --client new_site --data new_site_photos
    """
    opened = open_run(run)
    from pfedmma_deploy.federated.personalize import personalize as personalize_client

    started = time.perf_counter()
    result = personalize_client(
        opened,
        client,
        data=data,
        epochs=epochs,
        lr=lr,
        train_shared=train_shared,
        progress=output.progress,
    )
    states = {
        "zero_shot": result.zero_shot.to_dict(),
        "before": result.before.to_dict(),
        "after": result.after.to_dict(),
    }
    rows = {name.replace("_", "-"): accuracies for name, accuracies in states.items()}
    print_accuracies(output, rows, f"Client {client} of {opened.folder}")
    output.say(
        f"It answers at strength {result.strength:g} of 1: as far as it may go without moving what"
        " zero-shot CLIP knew of other names (--guard of the run)."
    )
    output.note(f"Next: pfedmma export --client {client}")
    output.result(
        {
            "run": str(opened.folder),
            "client": client,
            "new": result.is_new,
            **states,
            "strength": result.strength,
            "loss": result.loss,
            "folder": str(result.folder),
            "seconds": time.perf_counter() - started,
        }
    )
