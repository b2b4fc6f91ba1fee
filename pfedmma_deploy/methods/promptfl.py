"""PromptFL: clients learn one prompt together, instead of a model (Guo et al., arXiv 2208.11625).

M context vectors stand before every class name (CoOp, arXiv 2109.01134); both towers are frozen.
Every client minimises the cross-entropy in the context alone, the server averages it weighted by
the number of images.

FedProx (Li et al., arXiv 1812.06127, equation 2) adds mu/2 ||ctx - ctx_t||^2 to a client's loss,
ctx_t being the context that the server sent at the start of the round: `mu` above 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from pfedmma_deploy.adapters.prompts import PromptAdapter, new_vectors, require_room
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.methods.base import Batch, Method, Parameters
from pfedmma_deploy.types import Scope


@dataclass(frozen=True)
class PromptFLParameters(Parameters):
    """Hyper-parameters and their symbols in the papers."""

    context_vectors: Annotated[int, Field(ge=1)] = 16
    """M of CoOp: learned vectors before a class name."""
    mu: Annotated[float, Field(ge=0)] = 0.0
    """mu of FedProx: weight of the distance to the received context; 0 is plain PromptFL."""


class SharedContext(PromptAdapter):
    """One context `ctx` [M, d] for all classes, N(0, 0.02^2), shared by all clients."""

    def __init__(self, backbone: Backbone, vectors: int, generator: torch.Generator) -> None:
        super().__init__()
        require_room(backbone, vectors)
        self.ctx = new_vectors(vectors, backbone.width("text"), generator=generator)

    @property
    def context(self) -> Tensor:
        """ctx."""
        return self.ctx

    def scopes(self) -> dict[str, Scope]:
        """The context is shared."""
        return {"ctx": Scope.SHARED}


class PromptFL(Method[SharedContext, PromptFLParameters]):
    """CoOp's prompt, averaged."""

    name = "promptfl"
    paper = "PromptFL, arXiv 2208.11625"
    trained = "one context before the class names"
    shared = "the context"
    Parameters = PromptFLParameters

    def build(self, backbone: Backbone, generator: torch.Generator) -> SharedContext:
        """One context."""
        return SharedContext(backbone, self.parameters.context_vectors, generator)

    def loss(self, backbone: Backbone, adapter: SharedContext, batch: Batch) -> Tensor:
        """Cross-entropy, and FedProx's term where it has a weight; a scalar."""
        value = super().loss(backbone, adapter, batch)
        if self.parameters.mu > 0:
            received = batch.received["ctx"].to(adapter.ctx.device)
            distance = (adapter.ctx - received).square().sum()
            value = value + self.parameters.mu / 2 * distance
        return value
