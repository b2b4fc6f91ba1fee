"""`pfedmma data fetch`: download a data set by way of torchvision."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pfedmma_deploy.errors import UsageError

from .data_list import DataRoot
from .options import AsJson, Quiet, Verbose
from .output import open_output


def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name from `pfedmma data list`.")],
    data_root: DataRoot = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Download without asking.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Download a data set into the data root, after saying what, from where and how large.

    \b
    Examples:
      pfedmma data fetch cifar10 --data-root data
      pfedmma data fetch dtd --yes
    """
    from pfedmma_deploy.data import catalog as download
    from pfedmma_deploy.data.catalog import data_root as find_root

    with open_output(as_json=as_json, quiet=quiet) as output:
        known = download.find_fetchable(name)
        root = find_root(data_root)
        if root is None:
            raise UsageError(
                f"nowhere to put {name}: give --data-root, or set the variable PFEDMMA_DATA"
            )
        import torchvision.datasets

        size = f"{(known.download_bytes or 0) / 1e6:,.0f} MB"
        output.note(
            f"{known.title}: about {size} into {root.resolve()}, from where torchvision"
            f" {torchvision.__version__} gets it.\n"
            f"Licence: {known.licence}; its page decides: {known.homepage}"
        )
        if not yes and not _agrees():
            raise UsageError("nothing was downloaded; --yes downloads without asking")
        folder = download.fetch(known, torchvision.datasets, root)
        missing = download.missing_files(known, folder)
        output.say(f"{known.name} is in {folder}.")
        if missing:
            output.say(f"For the parts of the papers, put {missing[0]} there, from {known.split}")
        output.note(f"Next: pfedmma data info {known.name} --data-root {root}")
        output.result({"name": known.name, "folder": str(folder), "missing": missing})


def _agrees() -> bool:
    if not sys.stdin.isatty():
        raise UsageError("asking needs a terminal; --yes downloads without asking")
    # On stderr, because stdout is for results.
    return typer.confirm("Download?", err=True)
