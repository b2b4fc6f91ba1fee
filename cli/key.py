"""`pfedmma key`: a key for `pfedmma serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pfedmma_deploy.errors import UsageError

from .options import flag, split_names, switch, with_output
from .output import Output


@with_output
def key(
    output: Output,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Whom it is for, as metrics and logs call it.")
    ],
    clients: Annotated[
        str,
        flag('Clients that it opens, such as "3,7"; "all" for every one, later ones too.', "IDS"),
    ],
    keys: Annotated[Path, flag("File that the key's hash is added to.", "FILE")] = Path(
        "keys.toml"
    ),
    metrics: Annotated[bool, switch("--metrics", "Let it read /metrics.")] = False,
) -> None:
    """Make a key for `pfedmma serve` and show it, once: the file keeps only its hash.

    To withdraw a key, remove its table from the file; a running server notices.

    \b
    Examples:
      pfedmma key ward-a --clients 3
      pfedmma key monitoring --clients "" --metrics --keys keys.toml
    """
    from pfedmma_deploy.serve.keys import add_key

    if not name.strip():
        raise UsageError("A key has a name: say whom it is for.")
    made = add_key(keys, name, split_names(clients) or [], metrics=metrics)
    output.say(made)
    output.note(f"Its hash is in {keys}; send the header: Authorization: Bearer {made[:4]}...")
    output.result({"name": name, "key": made, "keys": str(keys)})
