"""The clients of a bundle: what each has and reaches, and which one to show first."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.runtime.manifest import ClientInfo, Figures, History

from .model import DemoModel

__all__ = ["WITHIN", "ClientRow", "client_rows", "clients_dict", "first_client", "image_counts"]

WITHIN = 1.0
"""Points by which novel accuracy may differ from zero-shot for the client shown first."""


@dataclass(frozen=True)
class ClientRow:
    """One client, as the page shows it."""

    id: str
    seen: tuple[str, ...]
    """Names of the classes that it trained on."""
    images: int | None
    """Training images; None where the bundle does not say."""
    zero_shot: Figures | None
    personalized: Figures | None


def client_rows(model: DemoModel) -> list[ClientRow]:
    """All personalized clients in the bundle's order."""
    return [_row(model, info) for info in model.clients]


def _row(model: DemoModel, info: ClientInfo) -> ClientRow:
    seen = tuple(model.class_names[label] for label in info.seen)
    history = model.manifest.history
    known = history.clients.get(info.id) if history else None
    if known is None:
        return ClientRow(info.id, seen, None, None, None)
    images = sum(known.num_examples) if known.num_examples else None
    return ClientRow(info.id, seen, images, known.zero_shot, known.personalized)


def image_counts(model: DemoModel) -> tuple[NDArray[np.int64], bool]:
    """Training images int64 [clients, C], and whether they are numbers; else 1 means "has some"."""
    history = model.manifest.history
    counts = np.zeros((len(model.clients), len(model.class_names)), np.int64)
    known = history is not None and all(
        info.id in history.clients and history.clients[info.id].num_examples
        for info in model.clients
    )
    for row, info in enumerate(model.clients):
        if known and history is not None:
            counts[row] = history.clients[info.id].num_examples
        else:
            counts[row, list(info.seen)] = 1
    return counts, known


def first_client(model: DemoModel) -> str:
    """The client to show first: the one that gains most on its own classes without loss on novel.

    Among the clients whose novel accuracy stays within a point of zero-shot, the one whose local
    accuracy rises most; where none stays within, the one with the largest sum of both changes;
    where nothing was measured, the bundle's first.
    """
    best: tuple[bool, float] | None = None
    chosen = model.clients[0].id
    for row in client_rows(model):
        local, novel = change(row, "local"), change(row, "novel")
        if local is None:
            continue
        stays = novel is None or abs(novel) <= WITHIN
        score = stays, local if stays else local + (novel or 0.0)
        if best is None or score > best:
            best, chosen = score, row.id
    return chosen


def change(row: ClientRow, figure: str) -> float | None:
    """Points by which personalization changes `local`, `base` or `novel`; None if not measured."""
    before, after = getattr(row.zero_shot, figure, None), getattr(row.personalized, figure, None)
    return None if before is None or after is None else after - before


def clients_dict(model: DemoModel) -> dict[str, Any]:
    """JSON-ready: every client, and what training sent."""
    history: History | None = model.manifest.history
    return {
        "clients": [asdict(row) for row in client_rows(model)],
        "class_names": list(model.class_names),
        "base": [model.class_names[label] for label in model.manifest.base],
        "novel": [model.class_names[label] for label in model.manifest.novel],
        "shown_first": first_client(model),
        "rounds": history.rounds if history else None,
        "bytes_per_client_round": history.bytes_up_per_client_round
        + history.bytes_down_per_client_round
        if history
        else None,
        "bytes_total": history.bytes_total if history else None,
    }
