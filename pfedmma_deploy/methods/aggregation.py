"""What the server does with the updates of a round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

import torch
from torch import Tensor

from pfedmma_deploy.errors import UsageError, nearest

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Update:
    """What a client sends to the server after its local training."""

    client: str
    shared: Tensors
    num_examples: int
    """n_i, the client's number of training images: its weight in a mean."""


class Aggregator(ABC):
    """A rule by which updates become the server's next state."""

    @abstractmethod
    def combine(self, updates: Sequence[Update], server: Tensors) -> Tensors:
        """The server's next state.

        Args:
            updates: of the clients that took part in the round.
            server: its state so far; what nobody sent must stay in it.

        Raises:
            ValueError: no update, or updates that hold different tensors; the message names one.
        """


@dataclass(frozen=True)
class Mean(Aggregator):
    """The mean of every tensor over clients, summed in float64 in client order."""

    weighting: Literal["examples", "uniform"] = "examples"
    """`examples`: by the clients' numbers of training images; `uniform`: all alike."""

    def combine(self, updates: Sequence[Update], server: Tensors) -> Tensors:
        """See `Aggregator`."""
        if not updates:
            raise ValueError("no client sent an update")
        # Floating-point sums depend on their order: the same round gives the same bytes.
        ordered = sorted(updates, key=lambda update: update.client)
        first = ordered[0]
        for update in ordered:
            for name in sorted(first.shared.keys() ^ update.shared.keys()):
                raise ValueError(f"client {update.client} and {first.client} disagree on {name}")
        weights = [u.num_examples if self.weighting == "examples" else 1 for u in ordered]
        total = sum(weights)
        means = {}
        for name, value in first.shared.items():
            scaled = [
                update.shared[name].double() * (weight / total)
                for update, weight in zip(ordered, weights, strict=True)
            ]
            means[name] = torch.stack(scaled).sum(0).to(value.dtype)
        return means


@dataclass(frozen=True)
class PerHolder(Aggregator):
    """Another rule applied tensor by tensor, over the clients that sent it.

    For methods whose clients hold different components (TAP); what nobody sent stays as it is.
    """

    rule: Aggregator

    def combine(self, updates: Sequence[Update], server: Tensors) -> Tensors:
        """See `Aggregator`."""
        state = dict(server)
        for name, value in server.items():
            holders = [
                Update(update.client, {name: update.shared[name]}, update.num_examples)
                for update in updates
                if name in update.shared
            ]
            if holders:
                state |= self.rule.combine(holders, {name: value})
        return state


AGGREGATORS: Final[Mapping[str, Aggregator]] = MappingProxyType(
    {"mean": Mean("examples"), "uniform-mean": Mean("uniform")}
)
"""The rules by name, as `--aggregate` takes them."""


def get_aggregator(name: str) -> Aggregator:
    """The rule called `name`. Raises `UsageError` naming the known ones."""
    if name not in AGGREGATORS:
        known = ", ".join(AGGREGATORS)
        raise UsageError(
            f"aggregate must be one of {known}, not {name!r}{nearest(name, AGGREGATORS)}"
        )
    return AGGREGATORS[name]
