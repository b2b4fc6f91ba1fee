"""`pfedmma inspect`: what is in a run or a bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfedmma_deploy.errors import StoreError

from .options import open_run, with_output
from .output import Output

if TYPE_CHECKING:
    from pfedmma_deploy.store.run import Run


@with_output
def inspect(
    output: Output,
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="Run or bundle. [default: the newest run]"),
    ] = None,
) -> None:
    """Show what a run or a bundle holds.

    Its clients, classes, parameters, bytes sent per round, files and hashes.

    \b
    Examples:
      pfedmma inspect
      pfedmma inspect runs/sites
      pfedmma inspect exports/sites --json
    """
    kind = "run" if folder is None else _kind(folder)
    values = _bundle(folder) if folder and kind == "bundle" else _run(open_run(folder))
    _print(output, values)
    output.result(values)


STRENGTH = {
    "exact": "from 0 (zero-shot) to 1.5, what clients add is scaled",
    "features": "from 0 (zero-shot) to 1.5, features are mixed with zero-shot's",
    None: "1 alone; export it again for others",
}


def _kind(folder: Path) -> str:
    """`run` or `bundle`, by the manifest. Raises `StoreError` for anything else."""
    try:
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        name = found.get("format") if isinstance(found, dict) else None
    except (OSError, ValueError):
        name = None
    kinds = {"pfedmma-run": "run", "pfedmma-bundle": "bundle"}
    if name not in kinds:
        raise StoreError(
            f"{folder} holds neither a run nor a bundle (no readable manifest.json of either): "
            "`pfedmma train` makes a run, `pfedmma export` a bundle."
        )
    return kinds[name]


def _run(run: Run) -> dict[str, Any]:
    from pfedmma_deploy.report.cost import total_cost

    manifest = run.manifest
    clients, files = [], {}
    for client in run.client_ids:
        config = run.load_client(client).config
        entry = {"id": client, "classes": config["seen"], "images": config["num_examples"]}
        clients.append({**entry, "personalized": config["personalized"] is not None})
    for name, digest in manifest["files"].items():
        files[name] = {"bytes": (run.folder / name).stat().st_size, "sha256": digest}
    return {
        "kind": "run",
        "folder": str(run.folder),
        "status": manifest["status"],
        "method": manifest["method"],
        "backbone": manifest["backbone"],
        "classes": manifest["class_names"],
        "base": manifest["base"],
        "novel": manifest["novel"],
        "clients": clients,
        "parameters": manifest["parameters"],
        "bytes_per_round": manifest["bytes_per_round"],
        "cost": total_cost(run.rounds),
        "files": files,
    }


def _bundle(folder: Path) -> dict[str, Any]:
    from pfedmma_deploy.runtime import Bundle

    bundle = Bundle.open(folder)
    bundle.verify()
    manifest = bundle.manifest.to_dict()

    def named(labels: Sequence[int]) -> list[str]:
        return [manifest["class_names"][label] for label in labels]

    clients = []
    for client in manifest["clients"]:
        entry = {"id": client["id"], "classes": named(client["seen"])}
        clients.append({**entry, "default_strength": client["default_strength"]})
    return {
        "kind": "bundle",
        "folder": str(folder),
        "method": manifest["adapter"].get("method"),
        "backbone": manifest["backbone"],
        "classes": manifest["class_names"],
        "base": named(manifest["base"]),
        "novel": named(manifest["novel"]),
        "clients": clients,
        "strength": manifest["strength"],
        "precision": manifest["precision"],
        "opset": manifest["opset"],
        "parity": manifest["parity"],
        "files": manifest["files"],
    }


def _print(output: Output, values: dict[str, Any]) -> None:
    state = f" ({values['status']})" if "status" in values else ""
    backbone = values["backbone"]
    output.say(f"{values['folder']}: a {values['kind']}{state}")
    output.say(f"Backbone: {backbone['name']} {backbone['pretrained']}, {backbone['fingerprint']}")
    output.say(f"Base classes: {', '.join(values['base'])}")
    output.say(f"Novel classes: {', '.join(values['novel']) or 'none'}")
    if "strength" in values:
        output.say(f"Strength: {STRENGTH[values['strength']]}")
    if "parameters" in values:
        counts = ", ".join(f"{scope} {count:,}" for scope, count in values["parameters"].items())
        traffic = values["bytes_per_round"]
        output.say(f"Parameters: {counts}")
        output.say(f"Bytes per client and round: {traffic['up']:,} up, {traffic['down']:,} down")
        _print_cost(output, values["cost"])
    rows = [[c["id"], c.get("images"), ", ".join(c["classes"]) or "-"] for c in values["clients"]]
    output.table(["Client", "Images", "Classes"], rows)
    files = [[name, f["bytes"], f["sha256"][:16]] for name, f in values["files"].items()]
    output.table(["File", "Bytes", "SHA-256 (start)"], files)


def _print_cost(output: Output, cost: dict[str, Any]) -> None:
    if not cost["rounds"]:
        return
    phases = ", ".join(f"{name} {value:.1f}" for name, value in cost["seconds_by_phase"].items())
    output.say(
        f"Cost of {cost['rounds']} rounds: {cost['seconds']:.1f} s ({phases}), "
        f"{cost['flop'] / 1e12:.2f} TFLOP in the frozen towers, "
        f"{cost['peak_memory'] / 1e9:.1f} GB, {cost['bytes_up'] / 1e6:.1f} MB up, "
        f"{cost['bytes_down'] / 1e6:.1f} MB down"
    )
