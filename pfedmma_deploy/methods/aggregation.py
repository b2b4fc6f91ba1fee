"""What the server does with the updates of a round.

Means believe every client. The other rules bound what one client can do to the server's state,
whatever it sends, as long as it sends finite numbers of the right shapes; docs/methods.md says when
to choose which. All compute in float64 in client order: the same round gives the same bytes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final, Literal

import torch
from torch import Tensor

from pfedmma_deploy.errors import UsageError, nearest
from pfedmma_deploy.plugins import Plugins, load_plugins

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
            updates: of the clients that took part in the round, in any order; finite numbers.
            server: its state so far; what nobody sent must stay in it.

        Raises:
            ValueError: no update, or updates that hold different tensors; the message names one.
        """


@dataclass(frozen=True)
class Mean(Aggregator):
    """The mean of every tensor over clients (FedAvg, McMahan et al. 2017, arXiv 1602.05629)."""

    weighting: Literal["examples", "uniform"] = "examples"
    """`examples`: by the clients' numbers of training images; `uniform`: all alike."""

    def combine(self, updates: Sequence[Update], server: Tensors) -> Tensors:
        """See `Aggregator`."""
        ordered = in_client_order(updates)
        weights = [u.num_examples if self.weighting == "examples" else 1 for u in ordered]
        total = sum(weights)
        means = {}
        for name, value in ordered[0].shared.items():
            scaled = [
                update.shared[name].double() * (weight / total)
                for update, weight in zip(ordered, weights, strict=True)
            ]
            means[name] = torch.stack(scaled).sum(0).to(value.dtype)
        return means


@dataclass(frozen=True)
class TrimmedMean(Aggregator):
    """Of every coordinate, the mean of what is left without the largest and the smallest values.

    Yin et al. 2018, arXiv 1803.01498, definitions 1 and 2. All clients weigh the same: a number of
    images is only what a client says. As many clients as are cut off per side may send anything;
    the result then stays between the smallest and the largest value of the others.
    """

    share: float
    """beta, the share of the n clients that is cut off on each side: floor(beta n) of them, but
    never so many that nothing is left. From 0.5 on that is the coordinate-wise median, with an even
    number of clients the mean of the two in the middle."""

    def combine(self, updates: Sequence[Update], server: Tensors) -> Tensors:
        """See `Aggregator`."""
        ordered = in_client_order(updates)
        count = len(ordered)
        cut = min(int(self.share * count), (count - 1) // 2)
        means = {}
        for name, value in ordered[0].shared.items():
            values = torch.stack([update.shared[name].double() for update in ordered])
            means[name] = values.sort(dim=0).values[cut : count - cut].mean(0).to(value.dtype)
        return means


@dataclass(frozen=True)
class Krum(Aggregator):
    """The update of the one client that lies closest to its neighbours.

    Blanchard et al. 2017 (NeurIPS), arXiv 1703.02757, section 4: a client's score is the sum of its
    squared L2 distances to the n - f - 2 nearest others, over all tensors together; the lowest
    score wins, of equal ones the first in client order. f, the number of clients that may send
    anything, is the largest with n >= 2f + 3: 1 of 5, 3 of 10. With 3 or 4 clients it is 0, and
    one alone still cannot win from far away. One or two cannot be told apart: their plain mean is
    taken.
    """

    def combine(self, updates: Sequence[Update], server: Tensors) -> Tensors:
        """See `Aggregator`."""
        ordered = in_client_order(updates)
        count = len(ordered)
        if count < KRUM_NEEDS:
            return Mean("uniform").combine(ordered, server)
        distances = torch.zeros(count, count, dtype=torch.float64)
        for name in ordered[0].shared:
            values = torch.stack([u.shared[name].double().flatten() for u in ordered])
            # Row by row: all differences at once would be n times as large as the updates.
            for row in range(count):
                distances[row] += (values - values[row]).square().sum(1).cpu()
        near = count - (count - 3) // 2 - 2
        # The nearest of all is the client itself.
        scores = distances.sort(dim=1).values[:, 1 : near + 1].sum(1).tolist()
        return dict(ordered[scores.index(min(scores))].shared)


KRUM_NEEDS: Final = 3
"""Clients below which `Krum` is a plain mean."""


@dataclass(frozen=True)
class NormClip(Aggregator):
    """The mean by number of images, after differences longer than most are scaled down.

    A client's difference is its update minus the server's state, over all tensors together. One
    that is longer than the round's median length gets that length (norm thresholding, Sun et al.
    2019, arXiv 1911.07963, with a bound that needs no tuning; of an even number of lengths the
    lower middle one). As long as fewer than half of the clients are dishonest, the server's state
    moves no further in a round than the longest honest difference, in whatever direction. The
    weights are what the clients say.
    """

    def combine(self, updates: Sequence[Update], server: Tensors) -> Tensors:
        """See `Aggregator`; `server` must hold every tensor that is sent."""
        ordered = in_client_order(updates)
        differences = [difference(update, server) for update in ordered]
        bound = sorted(map(length, differences))[(len(ordered) - 1) // 2]
        total = sum(update.num_examples for update in ordered)
        state = {}
        for name, value in ordered[0].shared.items():
            state[name] = server[name].to(value.device).double()
        for update, own in zip(ordered, differences, strict=True):
            for name, part in clip(own, bound).items():
                state[name] = state[name] + part * (update.num_examples / total)
        return {name: value.to(ordered[0].shared[name].dtype) for name, value in state.items()}


def in_client_order(updates: Sequence[Update]) -> list[Update]:
    """The updates in client order: floating-point sums depend on their order.

    Raises:
        ValueError: no update, or updates that hold different tensors; the message names one.
    """
    if not updates:
        raise ValueError("no client sent an update")
    ordered = sorted(updates, key=lambda update: update.client)
    first = ordered[0]
    for update in ordered:
        for name in sorted(first.shared.keys() ^ update.shared.keys()):
            raise ValueError(f"client {update.client} and {first.client} disagree on {name}")
    return ordered


def difference(update: Update, server: Tensors) -> Tensors:
    """The update minus the server's state, in float64."""
    return {
        name: value.double() - server[name].to(value.device).double()
        for name, value in update.shared.items()
    }


def length(tensors: Tensors) -> float:
    """The L2 norm over all tensors together."""
    return math.sqrt(sum(float(value.square().sum()) for value in tensors.values()))


def clip(tensors: Tensors, bound: float) -> Tensors:
    """The tensors, scaled down together to an L2 norm of `bound` where theirs is larger."""
    norm = length(tensors)
    factor = bound / norm if norm > bound else 1.0
    return {name: value * factor for name, value in tensors.items()}


@dataclass(frozen=True)
class PerHolder(Aggregator):
    """Another rule applied tensor by tensor, over the clients that sent it.

    For methods whose clients hold different components (TAP); what nobody sent stays as it is.
    Rules that compare whole updates (Krum, NormClip) compare those tensors alone.
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
    {
        "mean": Mean("examples"),
        "uniform-mean": Mean("uniform"),
        "median": TrimmedMean(0.5),
        # Of ten clients three may be dishonest, as with Krum: beta must be at least their share.
        "trimmed-mean": TrimmedMean(0.3),
        "krum": Krum(),
        "norm-clip": NormClip(),
    }
)
"""The rules by name, as `--aggregate` takes them."""


@cache
def aggregator_plugins() -> Plugins[Aggregator]:
    """Rules that installed packages add (`pfedmma.aggregators`)."""
    return load_plugins("pfedmma.aggregators", AGGREGATORS, _check_aggregator)


def _check_aggregator(name: str, found: object) -> Aggregator:
    if not isinstance(found, Aggregator):
        raise UsageError(f"it should be an instance of Aggregator, found {found!r}")
    return found


def get_aggregator(name: str) -> Aggregator:
    """The rule called `name`. Raises `UsageError` naming the known ones."""
    if name in AGGREGATORS:
        return AGGREGATORS[name]
    plugins = aggregator_plugins()
    plugins.require_usable(name)
    rules = {**AGGREGATORS, **plugins.found}
    if name not in rules:
        known = ", ".join(rules)
        raise UsageError(f"aggregate must be one of {known}, not {name!r}{nearest(name, rules)}")
    return rules[name]
