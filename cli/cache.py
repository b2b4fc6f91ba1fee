"""`pfedmma cache`: what is kept to be faster next time, and where."""

from __future__ import annotations

import shutil
from typing import Annotated

import typer

from pfedmma_deploy.caches import KINDS, VARIABLE, cache_folder, folder_size

from .options import with_output
from .output import Output, Row

app = typer.Typer(
    no_args_is_help=True,
    help="Show or clear what is kept to be faster next time; all of it can be made again.",
)


@app.command()
@with_output
def info(output: Output) -> None:
    """Show where caches are and how large they are.

    \b
    Examples:
      pfedmma cache info
    """
    found = {kind: folder_size(cache_folder(kind)) for kind in KINDS}
    place = cache_folder("")
    if place is None:
        output.say(f"Caches are off ({VARIABLE}).")
    else:
        output.say(f"Caches below {place}")
        rows: list[Row] = [
            [kind, KINDS[kind], files, f"{size / 1e6:.1f}"] for kind, (files, size) in found.items()
        ]
        output.table(["Kind", "Holds", "Files", "MB"], rows)
        output.note(f"{VARIABLE} names another place, or is `off`. Clear: pfedmma cache clear")
    kinds = {kind: {"files": files, "bytes": size} for kind, (files, size) in found.items()}
    output.result({"folder": None if place is None else str(place), "kinds": kinds})


@app.command()
@with_output
def clear(
    output: Output,
    kind: Annotated[
        list[str] | None, typer.Argument(metavar="[KIND]...", help="Which. [default: all]")
    ] = None,
) -> None:
    """Delete caches; they are made again when they are needed.

    \b
    Examples:
      pfedmma cache clear
      pfedmma cache clear prefixes
    """
    from pfedmma_deploy.errors import UsageError, nearest

    for name in kind or ():
        if name not in KINDS:
            known = ", ".join(KINDS)
            raise UsageError(f"no cache is called {name!r}{nearest(name, KINDS)} ({known})")
    freed = 0
    for name in kind or KINDS:
        folder = cache_folder(name)
        freed += folder_size(folder)[1]
        if folder is not None and folder.is_dir():
            shutil.rmtree(folder)
    output.say(f"Freed {freed / 1e6:.1f} MB.")
    output.result({"cleared": list(kind or KINDS), "bytes": freed})
