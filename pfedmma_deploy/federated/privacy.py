"""Client-level differential privacy of what is shared: clipped differences, a noised mean.

DP-FedAvg (McMahan et al. 2018, arXiv 1710.06963, algorithm 1, flat clipping, fixed denominator).
What it covers is the sequence of the server's states; docs/methods.md says what it does not cover.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch

from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.methods.aggregation import (
    Aggregator,
    Mean,
    PerHolder,
    Tensors,
    Update,
    clip,
    difference,
)

DELTA: Final = 1e-5
"""delta of the reported epsilon: far below 1 / N up to some ten thousand clients."""


@dataclass(frozen=True)
class Privacy:
    """How much one client may change the server's state, and how much noise hides it."""

    clip: float
    """C, the largest L2 norm of a client's difference from the server's state, over all shared
    tensors together."""
    noise: float
    """S, the noise multiplier: the noise on a sum of differences has standard deviation S C."""
    clients: int
    """N, the clients of the federation."""
    expected: int
    """m, the clients that a round selects: what a sum is divided by, however many answer."""
    delta: float = DELTA

    def combine(
        self, updates: Sequence[Update], server: Tensors, rng: np.random.Generator
    ) -> Tensors:
        """The server's next state: its last one, plus the clipped mean, plus noise.

            w + 1/m sum_k min(1, C / ||w_k - w||) (w_k - w) + N(0, (S C / m)^2)

        All clients weigh the same. What a client does not hold counts as unchanged, and noise is
        added to every tensor of the server. One client more moves the mean by at most C / m,
        another in its place by at most 2 C / m.

        Args:
            updates: of the clients that answered; none may hold a tensor that `server` lacks.
            server: its state so far.
            rng: draws the noise. Whoever can draw the same numbers can take it off again: where
                clients know the run's seed, a server passes a generator that they do not.
        """
        sums = {
            name: torch.zeros_like(value, dtype=torch.float64) for name, value in server.items()
        }
        # In client order, as everywhere; unlike in a mean, clients may hold different tensors.
        for update in sorted(updates, key=lambda update: update.client):
            for name, part in clip(difference(update, server), self.clip).items():
                sums[name] += part.to(sums[name].device)
        state = {}
        # By name: the noise must not depend on the order in which tensors were read.
        for name in sorted(server):
            value = server[name]
            drawn = torch.from_numpy(np.asarray(rng.standard_normal(tuple(value.shape))))
            noise = drawn.to(value.device) * (self.noise * self.clip)
            moved = value.double() + (sums[name] + noise) / self.expected
            state[name] = moved.to(value.dtype)
        return state

    def epsilon(self, rounds: int) -> float:
        """What so many rounds cost; see the function `epsilon`."""
        return epsilon(rounds, self.expected / self.clients, self.noise, self.delta)

    def to_dict(self, rounds: int) -> dict[str, Any]:
        """The figures by name, with the epsilon of so many rounds, for the manifest."""
        return {**asdict(self), "rounds": rounds, "epsilon": self.epsilon(rounds)}


def epsilon(rounds: int, sampling: float, noise: float, delta: float = DELTA) -> float:
    """The epsilon that `rounds` rounds with client-level noise cost, at `delta`.

    Renyi accounting (Mironov et al. 2019, arXiv 1908.10530) by Google's dp-accounting: the sampled
    Gaussian mechanism, composed. Two federations are neighbours where one has a client more. It
    counts as if every client were drawn by itself with probability `sampling`; rounds here draw a
    fixed number, for which it is an approximation, exact where all take part.

    Args:
        rounds: 1 or more.
        sampling: q, the share of the clients that a round selects, above 0 and at most 1.
        noise: S, the noise multiplier.
        delta: above 0, below 1.

    Raises:
        UsageError: dp-accounting is not installed.
    """
    try:
        from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, rdp
    except ImportError as error:
        raise UsageError(
            "What differential privacy costs is computed by dp-accounting, which is not installed:"
            " pip install 'pfedmma-deploy[fleet]'"
        ) from error
    accountant = rdp.RdpAccountant()
    logger = logging.getLogger("absl")
    # It warns of every order of the divergence that it leaves out, which only makes epsilon larger.
    logger.addFilter(_is_error)
    try:
        accountant.compose(PoissonSampledDpEvent(sampling, GaussianDpEvent(noise)), rounds)
    finally:
        logger.removeFilter(_is_error)
    return float(accountant.get_epsilon(delta))


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def require_mean(aggregator: Aggregator, chosen: str) -> None:
    """Raises `UsageError` where the server does not take a mean, which is what noise is added to.

    `chosen` is the option that decided on the rule.
    """
    rule = aggregator.rule if isinstance(aggregator, PerHolder) else aggregator
    if not isinstance(rule, Mean):
        raise UsageError(
            f"--dp-clip and --dp-noise add noise to a mean of the clients, which {chosen} does not"
            " take: leave it out, or them."
        )
