"""What a run's files and its clients' parameters tell: training, differences, provenance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.data.catalog import known_datasets
from pfedmma_deploy.data.samples import SampleDataset
from pfedmma_deploy.federated.rounds import sample_clients
from pfedmma_deploy.federated.session import Session
from pfedmma_deploy.progress import Progress
from pfedmma_deploy.report.cost import nearly_there
from pfedmma_deploy.report.heatmap import count_holdings
from pfedmma_deploy.report.measures import cosines, layer_drift, mean_of
from pfedmma_deploy.store.run import Run
from pfedmma_deploy.types import Dataset, Scope

MOST_CLIENTS = 20
"""Clients whose parameters are compared with each other, evenly spaced in client order."""


def describe_training(run: Run, ids: list[str]) -> dict[str, Any]:
    """Curves, the way to 90 % of the final validation accuracy, and who failed to answer.

    Args:
        run: the run.
        ids: the federation's clients in their order.

    Returns:
        JSON-ready: `rounds` as recorded; `clients`: by id its `round`, `loss` and `val_accuracy`,
        empty for runs of versions that recorded means alone; `nearly`: the first round whose mean
        validation accuracy reaches 90 % of the last one's, and bytes both ways of all clients up to
        it, None without validation images; `failures`: `{"round", "clients"}` of those chosen that
        did not answer.
    """
    rounds, config = run.rounds, run.config
    clients: dict[str, dict[str, list[Any]]] = {}
    failures = []
    for record in rounds:
        chosen = sample_clients(ids, config.clients_per_round, config.seed, record["round"] - 1)
        lost = [client for client in chosen if client not in record["clients"]]
        if lost:
            failures.append({"round": record["round"], "clients": lost})
        for key in ("loss", "val_accuracy"):
            for client, value in zip(
                record["clients"], record.get(f"client_{key}", ()), strict=False
            ):
                curve = clients.setdefault(client, {"round": [], "loss": [], "val_accuracy": []})
                curve[key].append(value)
                if key == "loss":
                    curve["round"].append(record["round"])
    return {
        "rounds": rounds,
        "clients": clients,
        "nearly": nearly_there(rounds),
        "failures": failures,
    }


def describe_clients(
    session: Session, load: Callable[[str], Adapter], chosen: list[str], progress: Progress
) -> dict[str, Any]:
    """Who holds what, how far each client's layers moved, and whose changes are alike.

    Args:
        session: the run's.
        load: puts a client's own model into the one adapter that it always returns.
        chosen: ids of the clients whose parameters are compared.
        progress: told of the clients.

    Returns:
        JSON-ready: `holdings`: training images [clients, base classes], and domains; `drift`: by
        layer, over the chosen clients, see `layer_drift`; `similarity`: cosines of the changes of
        what stays with the client, None where nothing does.
    """
    held = count_holdings(session.federation)
    start = session.build_adapter()
    begun, scopes = start.tensors(Scope.LOCAL, Scope.SHARED), start.scopes()
    drift: dict[str, list[float | None]] = {}
    changes = []
    for client in progress.track(chosen, "clients compared", len(chosen)):
        now = load(client).tensors()
        for layer, value in layer_drift(now, begun).items():
            drift.setdefault(layer, []).append(value)
        local = [now[n] - v for n, v in begun.items() if scopes[n] is Scope.LOCAL]
        if local:
            changes.append(torch.cat([v.flatten() for v in local]).double().cpu().numpy())
    return {
        "holdings": {
            "clients": list(held.clients),
            "domains": [client.domain for client in session.federation.clients],
            "classes": list(held.classes),
            "images": held.counts.tolist(),
        },
        "clients": chosen,
        "drift": {
            layer: {
                "scope": _scope(layer, scopes),
                "mean": mean_of(values),
                "lowest": min((v for v in values if v is not None), default=None),
                "highest": max((v for v in values if v is not None), default=None),
                "clients": values,
            }
            for layer, values in drift.items()
        },
        "similarity": cosines(changes) if changes else None,
    }


def _scope(layer: str, scopes: dict[str, Scope]) -> str:
    """Who holds a layer; its tensors may differ, as the two factors of a low-rank matrix do."""
    found = {scope for name, scope in scopes.items() if (name.rpartition(".")[0] or name) == layer}
    return " and ".join(sorted(scope.value for scope in found))


def provenance(run: Run, session: Session) -> dict[str, Any]:
    """What someone needs to judge or repeat the run: options, versions, hashes, licences."""
    manifest = run.manifest
    backbone = dict(manifest["backbone"])
    # The embedded backbone's card; open_clip's weights come without one.
    backbone["licence"] = "Apache-2.0" if backbone["name"] == "pfedmma-tiny" else None
    return {
        "created": manifest["created"],
        "method": session.method.name,
        "paper": session.method.paper,
        "config": run.config.to_options(),
        "backbone": backbone,
        "data": {
            "name": session.federation.dataset.name,
            "licence": _data_licence(session.federation.dataset),
            "fingerprint": run.splits.get("data", {}).get("fingerprint"),
        },
        "versions": manifest["versions"],
        "threads": manifest["threads"],
        "personalized": [
            client
            for client in run.client_ids
            if run.load_client(client).config["personalized"] is not None
        ],
        "warnings": manifest["warnings"],
        "skipped": len(manifest["skipped"]),
        "files": manifest["files"],
    }


def _data_licence(dataset: Dataset) -> str | None:
    """In short, as the data's own card or page says it; None where nothing is recorded."""
    if isinstance(dataset, SampleDataset):
        licences = dataset.card["licences"]
        return "; ".join(f"{domain}: {licence}" for domain, licence in licences.items())
    known = known_datasets().get(dataset.name)
    return known.licence if known else None
