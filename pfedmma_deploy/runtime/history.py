"""What a bundle remembers of its training: images per class, traffic, accuracies by client."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pfedmma_deploy.errors import BundleError
from pfedmma_deploy.runtime.reader import Reader

__all__ = ["ClientHistory", "Figures", "History", "read_history"]


@dataclass(frozen=True, slots=True)
class Figures:
    """Accuracies in percent; None where there was nothing to measure them on."""

    local: float | None
    """On test images of the client's own classes, among all base names."""
    base: float | None
    """On test images of all base classes, among all base names."""
    novel: float | None
    """On test images of the novel classes, among the novel names."""


@dataclass(frozen=True, slots=True)
class ClientHistory:
    """One client's part in the federation."""

    num_examples: tuple[int, ...]
    """Training images by label; empty where the run does not know them."""
    zero_shot: Figures | None
    """Of plain CLIP on this client's test images; None where it was not measured."""
    personalized: Figures | None
    """Of the client's own model."""


@dataclass(frozen=True, slots=True)
class History:
    """One run: how long it trained, what travelled, what each client has and reaches."""

    rounds: int
    bytes_up_per_client_round: int
    """Sent by one client in one round."""
    bytes_down_per_client_round: int
    bytes_total: int
    """Sent both ways by all clients in all rounds."""
    parameters: Mapping[str, int]
    """Numbers by scope: shared, local, frozen."""
    clients: Mapping[str, ClientHistory]
    """By client id; a client that joined the bundle later has none."""

    def require_fitting(self, ids: Sequence[str], class_count: int) -> None:
        """Raises `BundleError` where it speaks of other clients or classes than the bundle has."""
        for name, client in self.clients.items():
            if name not in ids[1:]:
                raise BundleError(
                    f"The manifest's history names a client {name!r} that the bundle lacks: "
                    "the bundle is damaged, export it again."
                )
            if len(client.num_examples) not in {0, class_count}:
                raise BundleError(
                    f"The manifest's history counts images of {len(client.num_examples)} classes "
                    f"for client {name!r}, expected {class_count}: export the bundle again."
                )


def read_history(raw: Any) -> History | None:
    """The history in a manifest; None where there is none, as in bundles made without a run.

    Raises:
        BundleError: it has another form than expected; the message names the key.
    """
    if raw is None:
        return None
    reader = Reader({"history": raw})
    reader = Reader(reader.get("history", dict), "history.")
    clients = {name: _client(name, entry) for name, entry in reader.get("clients", dict).items()}
    scopes = Reader(reader.get("parameters", dict), "history.parameters.")
    return History(
        rounds=reader.get("rounds", int),
        bytes_up_per_client_round=reader.get("bytes_up_per_client_round", int),
        bytes_down_per_client_round=reader.get("bytes_down_per_client_round", int),
        bytes_total=reader.get("bytes_total", int),
        parameters={scope: scopes.get(scope, int) for scope in scopes.raw},
        clients=clients,
    )


def _client(name: str, raw: Any) -> ClientHistory:
    prefix = f"history.clients.{name}."
    reader = Reader(raw if isinstance(raw, dict) else {}, prefix)
    return ClientHistory(
        tuple(reader.items("num_examples", int)),
        _figures(reader, "zero_shot"),
        _figures(reader, "personalized"),
    )


def _figures(reader: Reader, key: str) -> Figures | None:
    if reader.raw.get(key) is None:
        return None
    inner = Reader(reader.get(key, dict), f"{reader.prefix}{key}.")
    return Figures(*(_percent(inner, name) for name in ("local", "base", "novel")))


def _percent(reader: Reader, name: str) -> float | None:
    if reader.raw.get(name) is None:
        return None
    value = float(reader.get(name, float))
    if not (math.isfinite(value) and 0 <= value <= 100):
        raise BundleError(
            f"The manifest's {reader.prefix}{name} should be a percentage, found {value:g}: "
            "the bundle is damaged, export it again."
        )
    return value
