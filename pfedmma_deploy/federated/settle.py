"""What is settled of a client once it is trained: how strongly its model counts."""

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
    """The client with `default_strength` and, where there was something to choose, `guard`.

    Args:
        session: with the client's images.
        client: which of them are its own.
        stored: the client as it shall be stored.
        shared: the server's state.
    """
    choice: dict[str, Any] = {"default_strength": 1.0, "guard": None}
    if session.config.guard < 100 and session.method.is_trained:
        guard = session.guardian.choose(session.client_model(stored, shared), client)
        choice = {"default_strength": guard.strength, "guard": asdict(guard)}
    return replace(stored, config={**stored.config, **choice})
