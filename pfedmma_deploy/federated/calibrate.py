"""A client's calibration, in the same file as all else that its adapter comes with."""

from __future__ import annotations

from dataclasses import replace

from pfedmma_deploy.federated.session import Session
from pfedmma_deploy.methods.base import Tensors
from pfedmma_deploy.store.run import StoredClient
from pfedmma_deploy.types import ClientData


def calibrated(
    session: Session, client: ClientData, stored: StoredClient, shared: Tensors
) -> StoredClient:
    """The client with `calibration` in its configuration, fitted at its `default_strength`.

    As it is where it has no training or no validation images, or where clients of its method cannot
    be exported: then nobody will ask.

    Args:
        session: with the client's images.
        client: which of them are its own.
        stored: the client as it shall be stored.
        shared: the server's state.
    """
    if session.method.export_blocker:
        return stored
    strength = float(stored.config.get("default_strength", 1.0))
    adapter = session.client_model(stored, shared).at(strength)
    found = session.calibrator.fit(adapter, client.train, client.val, strength)
    if found is None:
        return stored
    return replace(stored, config={**stored.config, "calibration": found.to_dict()})
