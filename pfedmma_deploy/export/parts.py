"""What clients change besides pFedMMA's adapter, stacked into banks: one row per client.

A tensor `{tower}.{bank}` of every client becomes the initializer `{bank}` [clients + 1, ...] of
that tower's graph (see `pfedmma_deploy.adapters.graph_form`); row 0 is zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pfedmma_deploy.adapters.graph_form import is_part
from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.export.clients import ExportClient, finite
from pfedmma_deploy.types import TOWERS, Tower

__all__ = ["stack_parts"]


def stack_parts(clients: Sequence[ExportClient]) -> dict[Tower, dict[str, Tensor]]:
    """Banks by tower and name, fp32.

    Raises:
        ExportError: tensors that are missing, of different shapes, or not finite.
    """
    first = {name: value for name, value in clients[0].tensors.items() if is_part(name)}
    for client in clients:
        own = {name for name in client.tensors if is_part(name)}
        for name in sorted(own ^ first.keys()):
            raise ExportError(
                f"The client {client.id!r} {'lacks' if name in first else 'alone has'} {name}: "
                "all clients of a bundle need the same tensors."
            )
    found: dict[Tower, dict[str, Tensor]] = {tower: {} for tower in TOWERS}
    for tower in TOWERS:
        for name in first:
            if name.startswith(f"{tower}."):
                found[tower][name.removeprefix(f"{tower}.")] = _bank(name, clients)
    return found


def _bank(name: str, clients: Sequence[ExportClient]) -> Tensor:
    rows = [finite(client, name) for client in clients]
    for client, row in zip(clients, rows, strict=True):
        if row.shape != rows[0].shape:
            raise ExportError(
                f"The client {client.id!r} has {name} of shape {list(row.shape)}, others "
                f"{list(rows[0].shape)}: export clients of one run."
            )
    return torch.stack([torch.zeros_like(rows[0]), *rows])
