"""`pfedmma bundle`: clients join and leave a finished bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import find_bundle, flag, with_output
from .output import Output, Row

if TYPE_CHECKING:
    from pfedmma_deploy.runtime import Bundle

app = typer.Typer(
    no_args_is_help=True,
    help="List, add and remove the clients of a finished bundle, without the run it came from.",
)


@app.command()
@with_output
def add(
    output: Output,
    client: Annotated[
        Path, typer.Argument(metavar="CLIENT_DIR", help="Folder of a client: runs/NAME/clients/ID.")
    ],
    to: Annotated[Path, flag("The bundle that it joins.", "BUNDLE")],
    name: Annotated[str | None, flag("Id to serve it under. [default: its]", "ID", "--as")] = None,
) -> None:
    """Add a client to a bundle, as its last one.

    Its adapter is checked against the bundle, and the longer bundle against the equation of the
    adapter, before it takes the place of the old one.

    \b
    Examples:
      pfedmma bundle add runs/sites/clients/9 --to exports/sites
      pfedmma bundle add runs/sites/clients/9 --to exports/sites --as new_site
    """
    from pfedmma_deploy.export.bundle_clients import add_client

    _show(output, add_client(to, client, name=name))


@app.command()
@with_output
def remove(
    output: Output,
    client: Annotated[str, typer.Argument(metavar="ID", help="Id of the client that leaves.")],
    bundle: Annotated[Path, flag("The bundle that it leaves.", "BUNDLE", "--from")],
) -> None:
    """Take a client out of a bundle; those behind it move up by one index.

    \b
    Examples:
      pfedmma bundle remove 9 --from exports/sites
    """
    from pfedmma_deploy.export.bundle_clients import remove_client

    _show(output, remove_client(bundle, client))


@app.command("list")
@with_output
def list_clients(
    output: Output,
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="[BUNDLE]", help="Bundle. [default: the newest in exports/]"),
    ] = None,
) -> None:
    """List the clients of a bundle by index; 0 is zero-shot CLIP.

    \b
    Examples:
      pfedmma bundle list
      pfedmma bundle list exports/sites --json
    """
    folder = find_bundle(bundle)
    from pfedmma_deploy.runtime import Bundle

    opened = Bundle.open(folder)
    names = opened.manifest.class_names
    rows: list[Row] = []
    for client in opened.manifest.clients:
        seen = ", ".join(names[label] for label in client.seen)
        rows.append([client.index, client.id, seen or "-"])
    output.table(["Index", "Client", "Classes seen in training"], rows, str(folder))
    output.result(_values(opened))


def _values(opened: Bundle) -> dict[str, Any]:
    """The keys that all three commands print."""
    manifest, folder = opened.manifest, opened.path
    files = {name: (folder / name).stat().st_size for name in (*manifest.files, "manifest.json")}
    return {
        "bundle": str(folder),
        "clients": [client.id for client in manifest.clients],
        "files": files,
        "parity": dict(manifest.parity),
        "quality": dict(manifest.quality) or None,
    }


def _show(output: Output, opened: Bundle) -> None:
    # What reduced precision changes was measured with the clients before, not with these.
    values = {**_values(opened), "quality": None}
    ids = values["clients"][1:]
    plural = "" if len(ids) == 1 else "s"
    output.say(
        f"{values['bundle']} now serves {len(ids)} client{plural} and zero-shot: {', '.join(ids)}"
    )
    output.result(values)
