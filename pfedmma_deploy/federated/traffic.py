"""What travels between a client and the server in one round."""

from __future__ import annotations

from collections.abc import Sequence

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.federated.engine import payload
from pfedmma_deploy.methods.base import Method, Update
from pfedmma_deploy.types import ClientData


def traffic(method: Method, adapter: Adapter, clients: Sequence[ClientData]) -> dict[str, int]:
    """Bytes `up` and `down` of the first client, once every client has taken part.

    Before that a method whose server passes clients' states on has less to send.
    """
    server = method.start(adapter, [client.id for client in clients])
    for client in clients:
        server = method.aggregate([Update(client.id, method.upload(adapter, client), 1)], server)
    first = clients[0]
    received = method.download(method.distribute(server, first.id), adapter, first)
    return {"up": payload(method.upload(adapter, first)), "down": payload(received)}
