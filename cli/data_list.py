"""`pfedmma data list`: which data sets are known, and which of them are there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import AsJson, Quiet, Verbose
from .output import open_output

if TYPE_CHECKING:
    from pfedmma_deploy.data.catalog import KnownDataset

DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        metavar="DIR",
        help="Folder that holds data sets by name. [default: the variable PFEDMMA_DATA]",
    ),
]


def list_datasets(
    data_root: DataRoot = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """List the data sets that are known by name, present or not.

    \b
    Examples:
      pfedmma data list
      pfedmma data list --data-root /data
      pfedmma data list --json
    """
    from pfedmma_deploy.data.catalog import ROOT_VARIABLE, known_datasets
    from pfedmma_deploy.data.catalog import data_root as find_root
    from pfedmma_deploy.data.samples import SAMPLE_NAMES

    with open_output(as_json=as_json, quiet=quiet) as output:
        root = find_root(data_root)
        entries = [describe(known, data_root) for known in known_datasets().values()]
        rows = [
            [e["name"], f"{e['classes']:,}", f"{e['images']:,}", e["licence"], e["folder"]]
            for e in entries
        ]
        output.table(["Name", "Classes", "Images", "Licence", "Folder"], rows)
        output.note(
            f"In the package: {', '.join(SAMPLE_NAMES)}. Any folder of images works as well.\n"
            + (f"Looked below {root}." if root else f"Set {ROOT_VARIABLE} or give --data-root.")
            + " Next: pfedmma data info NAME"
        )
        output.result({"data_root": str(root) if root else None, "datasets": entries})


def describe(known: KnownDataset, root: Path | None) -> dict[str, Any]:
    """A known data set as a JSON-able record; `folder` is None where it is not there."""
    from pfedmma_deploy.data.catalog import find_known

    folder = find_known(known, root)
    return {
        "name": known.name,
        "title": known.title,
        "classes": known.classes,
        "images": known.images,
        "domains": list(known.domains),
        "licence": known.licence,
        "homepage": known.homepage,
        "split_url": known.split,
        "expects": list(known.expects),
        "fetchable": known.torchvision is not None,
        "folder": str(folder) if folder else None,
    }
