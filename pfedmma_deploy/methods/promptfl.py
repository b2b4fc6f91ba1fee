"""PromptFL: clients learn one prompt together, instead of a model (Guo et al., arXiv 2208.11625).

M context vectors stand before every class name (CoOp, arXiv 2109.01134); both towers are frozen.
Every client minimises the cross-entropy in the context alone, the server averages it weighted by
the number of images.

FedProx (Li et al., arXiv 1812.06127, equation 2) adds mu/2 ||ctx - ctx_t||^2 to a client's loss,
ctx_t being the context that the server sent at the start of the round: `mu` above 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.adapters.graph_form import GraphForm, context_form
from pfedmma_deploy.adapters.prompts import LearnedContext
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.methods.base import Batch, Method, Tensors, clip_loss
from pfedmma_deploy.methods.ranges import at_least


@dataclass(frozen=True)
class PromptFLParameters:
    """Hyper-parameters and their symbols in the papers."""

    context_vectors: int = 16
    """M of CoOp: learned vectors before a class name."""
    mu: float = 0.0
    """mu of FedProx: weight of the distance to the received context; 0 is plain PromptFL."""

    def __post_init__(self) -> None:
        at_least("context_vectors", self.context_vectors, 1)
        at_least("mu", self.mu, 0)


def build(
    backbone: Backbone, parameters: PromptFLParameters, generator: torch.Generator
) -> Adapter:
    """One context, N(0, 0.02^2)."""
    return LearnedContext(
        backbone, parameters.context_vectors, generator, proximal_weight=parameters.mu
    )


def loss(backbone: Backbone, adapter: Adapter, batch: Batch) -> Tensor:
    """Cross-entropy, and FedProx's term where it has a weight; a scalar."""
    assert isinstance(adapter, LearnedContext)
    value = clip_loss(backbone, adapter, batch)
    if adapter.proximal_weight > 0:
        received = batch.received["ctx"].to(adapter.ctx.device)
        distance = (adapter.ctx - received).square().sum()
        value = value + adapter.proximal_weight / 2 * distance
    return value


def graph(tensors: Tensors, parameters: PromptFLParameters) -> GraphForm:
    """The context."""
    return context_form(tensors["ctx"])


PROMPTFL = Method(
    name="promptfl",
    paper="PromptFL, arXiv 2208.11625",
    trained="one context before the class names",
    shared="the context",
    parameters=PromptFLParameters,
    build=build,
    graph=graph,
    loss=loss,
)
