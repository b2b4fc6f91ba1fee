"""`pfedmma inspect`: what is in a run or a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfedmma_deploy.errors import StoreError

from .options import AsJson, Quiet, Verbose, open_run
from .output import Output, open_output

if TYPE_CHECKING:
    from pfedmma_deploy.store.run import Run


def inspect(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="Run or bundle. [default: the newest run]"),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show what a run or a bundle holds.

    Its clients, classes, parameters, bytes sent per round, files and hashes.

    \b
    Examples:
      pfedmma inspect
      pfedmma inspect runs/sites
      pfedmma inspect exports/sites --json
    """
    with open_output(as_json=as_json, quiet=quiet) as output:
        kind = "run" if folder is None else _kind(folder)
        values = _bundle(folder) if folder and kind == "bundle" else _run(open_run(folder))
        _print(output, values)
        output.result(values)


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
    manifest = run.manifest
    clients = [
        {"id": client, **_client(run.load_client(client).config)} for client in run.client_ids
    ]
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
        "cost": _cost(run),
        "files": {
            name: {"bytes": (run.folder / name).stat().st_size, "sha256": digest}
            for name, digest in manifest["files"].items()
        },
    }


def _cost(run: Run) -> dict[str, Any]:
    """What the rounds so far took together; bytes over all clients."""
    rounds = run.rounds
    phases: dict[str, float] = {}
    for record in rounds:
        for name, seconds in record["seconds_by_phase"].items():
            phases[name] = phases.get(name, 0.0) + seconds
    return {
        "rounds": len(rounds),
        "seconds": sum(record["seconds"] for record in rounds),
        "seconds_by_phase": {name: round(seconds, 3) for name, seconds in phases.items()},
        "flop": sum(record["flop"] for record in rounds),
        "peak_memory": max((record["peak_memory"] for record in rounds), default=0),
        "bytes_up": sum(r["bytes_up_per_client"] * len(r["clients"]) for r in rounds),
        "bytes_down": sum(r["bytes_down_per_client"] * len(r["clients"]) for r in rounds),
    }


def _client(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "classes": config["seen"],
        "images": config["num_examples"],
        "personalized": config["personalized"] is not None,
    }


def _bundle(folder: Path) -> dict[str, Any]:
    from pfedmma_deploy.runtime import Bundle

    bundle = Bundle.open(folder)
    bundle.verify()
    manifest = bundle.manifest.to_dict()
    names = manifest["class_names"]
    return {
        "kind": "bundle",
        "folder": str(folder),
        "method": manifest["adapter"].get("method"),
        "backbone": manifest["backbone"],
        "classes": names,
        "base": [names[label] for label in manifest["base"]],
        "novel": [names[label] for label in manifest["novel"]],
        "clients": [
            {"id": c["id"], "classes": [names[label] for label in c["seen"]]}
            for c in manifest["clients"]
        ],
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
