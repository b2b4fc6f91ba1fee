"""FedVLM: personalized LoRA (pLoRA), and its relatives by one switch.

arXiv 2507.17088. Every attention of both towers computes with W + (alpha / r) B A on its queries
and values; both factors are trained. The server averages B, weighted by the number of images, and
every client keeps its A. Averaging B alone only means something where all A agree: they start equal
on all clients, drawn from the run's seed, B starts at zero, and how far a client's A has moved from
that start, ||A - A_0|| / ||A_0||, is logged every round as `A_drift`.

    share = B             pLoRA (arXiv 2507.17088)
    share = A             FedSA-LoRA (arXiv 2410.01463): A is averaged, B stays
    share = AB            FedIT (arXiv 2305.05644): both are averaged, each for itself
    share = B-frozen-A    FFA-LoRA (arXiv 2403.12313): A stays as drawn, B is averaged

Rank, alpha, dropout and optimizer are choices of this project: the paper's are not public.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch

from pfedmma_deploy.adapters.graph_form import GraphForm, low_rank_form
from pfedmma_deploy.adapters.lora import LoRA
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.methods.base import ClientRun, Method, Tensors
from pfedmma_deploy.methods.ranges import above, at_least, one_of
from pfedmma_deploy.types import TOWERS, Scope

SHARE_CHOICES: Final = MappingProxyType(
    {
        "B": (Scope.LOCAL, Scope.SHARED),
        "A": (Scope.SHARED, Scope.LOCAL),
        "AB": (Scope.SHARED, Scope.SHARED),
        "B-frozen-A": (Scope.FROZEN, Scope.SHARED),
    }
)
"""Scopes of A and of B."""


@dataclass(frozen=True)
class PLoRAParameters:
    """Hyper-parameters and their symbols in the paper."""

    share: str = "B"
    """What is averaged: B, A, AB, or B with A frozen (B-frozen-A)."""
    rank: int = 8
    """r"""
    alpha: float = 16.0
    """alpha; the product B A is scaled by alpha / r."""
    dropout: float = 0.05
    """Fraction of A's input features left out of a step."""

    def __post_init__(self) -> None:
        one_of("share", self.share, tuple(SHARE_CHOICES))
        at_least("rank", self.rank, 1)
        above("alpha", self.alpha, 0)
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout must be from 0 to below 1, not {self.dropout}.")


def build(backbone: Backbone, parameters: PLoRAParameters, generator: torch.Generator) -> LoRA:
    """Low-rank matrices in every block of both towers."""
    scope_a, scope_b = SHARE_CHOICES[parameters.share]
    return LoRA(
        widths={tower: backbone.width(tower) for tower in TOWERS},
        depths={tower: backbone.depth(tower) for tower in TOWERS},
        rank=parameters.rank,
        alpha=parameters.alpha,
        dropout=parameters.dropout,
        generator=generator,
        scope_a=scope_a,
        scope_b=scope_b,
    )


def train(run: ClientRun) -> float:
    """Local epochs, and how far they took the client's A."""
    loss = run.fit()
    assert isinstance(run.adapter, LoRA)
    run.record["A_drift"] = run.adapter.drift()
    return loss


def graph(tensors: Tensors, parameters: PLoRAParameters) -> GraphForm:
    """The products beside the queries and the values."""
    names = [name.removesuffix(".A") for name in tensors if name.endswith(".A")]
    if not names:
        raise KeyError("image.0.q.A")
    products = {name: [(tensors[f"{name}.A"], tensors[f"{name}.B"])] for name in names}
    return low_rank_form(products, parameters.alpha / parameters.rank)


PLORA = Method(
    name="plora",
    paper="FedVLM (pLoRA), arXiv 2507.17088",
    trained="low-rank matrices A and B on queries and values of both towers",
    shared="B",
    folds=True,
    parameters=PLoRAParameters,
    build=build,
    graph=graph,
    local=train,
    defaults=MappingProxyType({"optimizer": "adamw", "lr": 3e-4}),
)
