"""What is settled of a client once it is trained: how strongly its model counts, and how far its
answers can be believed then. All of it stands in the client's own `adapter_config.json`.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from pfedmma_deploy.federated.session import Session
from pfedmma_deploy.methods.base import Tensors
from pfedmma_deploy.store.run import StoredClient
from pfedmma_deploy.types import ClientData


def settled(
    session: Session, client: ClientData, stored: StoredClient, shared: Tensors
) -> StoredClient:
    """The client with `default_strength`, `guard` and `calibration` in its configuration.

    Without a guard where there was nothing to choose; without a calibration where the client has no
    training or no validation images, or where its method cannot be exported: nobody will ask then.

    Args:
        session: with the client's images.
        client: which of them are its own.
        stored: the client as it shall be stored.
        shared: the server's state.
    """
    adapter = session.client_model(stored, shared)
    found: dict[str, Any] = {"default_strength": 1.0, "guard": None}
    if session.config.guard < 100 and session.method.is_trained:
        guard = session.guardian.choose(adapter, client)
        found = {"default_strength": guard.strength, "guard": asdict(guard)}
    if not session.method.export_blocker:
        strength = found["default_strength"]
        calibration = session.calibrator.fit(
            adapter.at(strength), client.train, client.val, strength
        )
        if calibration is not None:
            found["calibration"] = calibration.to_dict()
    return replace(stored, config={**stored.config, **found})
