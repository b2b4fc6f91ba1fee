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
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import Field

from pfedmma_deploy.adapters.lora import LoRA
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.methods.base import Method, Parameters
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
class PLoRAParameters(Parameters):
    """Hyper-parameters and their symbols in the paper."""

    share: Literal["B", "A", "AB", "B-frozen-A"] = "B"
    """What is averaged: B, A, AB, or B with A frozen (B-frozen-A)."""
    rank: Annotated[int, Field(ge=1)] = 8
    """r"""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """alpha; the product B A is scaled by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Fraction of A's input features left out of a step."""


class PLoRA(Method[LoRA, PLoRAParameters]):
    """Low-rank matrices in every block of both towers; one factor travels."""

    name = "plora"
    paper = "FedVLM (pLoRA), arXiv 2507.17088"
    trained = "low-rank matrices A and B on queries and values of both towers"
    shared = "B"
    Parameters = PLoRAParameters
    defaults = MappingProxyType({"optimizer": "adamw", "lr": 3e-4})
    merges = True
    is_batchable = False  # dropout draws

    def build(self, backbone: Backbone, generator: torch.Generator) -> LoRA:
        """All A drawn from the generator, all B zero."""
        scope_a, scope_b = SHARE_CHOICES[self.parameters.share]
        return LoRA(
            widths={tower: backbone.width(tower) for tower in TOWERS},
            depths={tower: backbone.depth(tower) for tower in TOWERS},
            rank=self.parameters.rank,
            alpha=self.parameters.alpha,
            dropout=self.parameters.dropout,
            generator=generator,
            scope_a=scope_a,
            scope_b=scope_b,
        )

    def remarks(self, adapter: LoRA) -> dict[str, Any]:
        """How far the round took the client's A."""
        return {"A_drift": adapter.drift()}
