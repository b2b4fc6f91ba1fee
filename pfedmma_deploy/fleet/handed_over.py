"""Clients whose sites hand their own part to the operator, as files, to be exported together."""

from __future__ import annotations

from pathlib import Path

from pfedmma_deploy.errors import FleetError, StoreError, UsageError
from pfedmma_deploy.federated.session import open_run_session
from pfedmma_deploy.fleet.folder import Fleet
from pfedmma_deploy.store.files import parse_json, parse_tensors, read_bytes
from pfedmma_deploy.store.run import Run, StoredClient


def accept(fleet: Fleet, folder: Path) -> Run:
    """Check a client's folder and keep a copy of it in the operator's run.

    Args:
        fleet: the operator's.
        folder: `clients/SITE` of a site's run.

    Raises:
        UsageError: the client is none of the federation's.
        FleetError: it was made with another backbone, method or prompt.
        StoreError: the folder is damaged, or its tensors do not fit the method.
    """
    run = Run.open(fleet.run_folder)
    run.require_complete()
    path = folder / "adapter_config.json"
    config = parse_json(read_bytes(path), path)
    id = config.get("client")
    known = [site.id for site in fleet.sites]
    if id not in known:
        raise UsageError(f"{folder} is of client {id!r}, the sites are {', '.join(known)}.")
    session = open_run_session(run)
    expected = {
        "backbone": dict(run.manifest["backbone"]),
        "method": session.method.name,
        "prompt": session.config.prompt,
    }
    for name, value in expected.items():
        if config.get(name) != value:
            raise FleetError(
                f"{folder} was made with {name} {config.get(name)!r}, the federation has {value!r}."
            )
    tensors = folder / "adapter.safetensors"
    client = StoredClient(id, parse_tensors(read_bytes(tensors), tensors), config)
    # Raises where a tensor does not fit, before anything is kept.
    try:
        session.client_model(client, run.load_shared())
    except (KeyError, RuntimeError) as error:
        raise StoreError(f"{folder} does not fit the method: {error}.") from error
    run.save_client(client)
    run.save()
    return run
