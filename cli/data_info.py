"""`pfedmma data info`: what a data set holds, or where to get it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .data_list import DataRoot, describe
from .options import AsJson, Quiet, Verbose
from .output import Output, open_output

if TYPE_CHECKING:
    from pfedmma_deploy.data.catalog import KnownDataset

_SHOWN = 12


def info(
    data: Annotated[
        str, typer.Argument(metavar="NAME|DIR", help="A known name, a sample, a folder or a file.")
    ],
    data_root: DataRoot = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="List the folder anew, whatever is remembered of it.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show the classes, parts, domains and clients of a data set.

    For a known data set that is not there: what is expected where, and where people get it. Images
    are counted, not opened; `pfedmma data check` opens them.

    \b
    Examples:
      pfedmma data info oxford_pets
      pfedmma data info my_photos
      pfedmma data info /data/domainnet --json
    """
    from pfedmma_deploy.data.catalog import find_known, known_datasets
    from pfedmma_deploy.data.datasets import load_dataset, summarize

    with open_output(as_json=as_json, quiet=quiet) as output:
        known = known_datasets().get(data)
        if known and not Path(data).exists() and find_known(known, data_root) is None:
            _absent(output, known, data_root)
            return
        dataset = load_dataset(data, root=data_root, verify=False, cache=not no_cache)
        found = summarize(dataset)
        _present(output, found)
        output.result({"present": True, **found})


def _absent(output: Output, known: KnownDataset, root: Path | None) -> None:
    from pfedmma_deploy.data.catalog import ROOT_VARIABLE
    from pfedmma_deploy.data.catalog import data_root as find_root

    entry = describe(known, root)
    base = find_root(root)
    folders = " or ".join(known.folders)
    output.say(f"{known.name}: {known.title}, {known.classes:,} classes, {known.images:,} images")
    output.say(f"Licence: {known.licence}")
    output.say(f"Not there: no folder {folders} " + (f"in {base}" if base else "(no data root)"))
    output.say(f"Expected in that folder: {', '.join(known.expects)}")
    output.say(f"Homepage: {known.homepage}")
    if known.split:
        output.say(f"{known.split_file or known.expects[-1]}: {known.split}")
    if known.torchvision:
        output.say(f"Download the images: pfedmma data fetch {known.name}")
    output.note(
        f"Give --data-root or set {ROOT_VARIABLE} to the folder above it, or name its own folder."
    )
    output.result({"present": False, **entry})


def _present(output: Output, found: dict[str, Any]) -> None:
    output.say(f"{found['name']}: {found['images']:,} images of {len(found['classes'])} classes")
    output.say(f"Layout: {found['layout']}")
    names = [entry["name"] for entry in found["classes"]]
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    output.say(f"Classes in order: {', '.join(names[:_SHOWN])}{more}")
    for title, column in (("Domain", "domains"), ("Client", "clients")):
        if found[column]:
            rows = [
                [name, *(parts.get(part, 0) for part in ("train", "val", "test"))]
                for name, parts in found[column].items()
            ]
            output.table([title, "Train", "Val", "Test"], rows)
    parts = ", ".join(f"{count:,} {part}" for part, count in found["parts"].items())
    output.say(f"Parts: {parts}")
    missing = [part for part in ("val", "test") if part not in found["parts"]]
    if missing:
        output.note(f"No {' and no '.join(missing)} part: training sets images aside by its seed.")
    if found["skipped"]:
        first = found["skipped"][0]
        output.note(f"{len(found['skipped']):,} skipped, as {first['path']}: {first['reason']}")
    for warning in found["problems"]:
        output.note(f"warning: {warning}")
