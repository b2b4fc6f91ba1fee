"""FML: a shared and a private model on every client, each learning from the other.

arXiv 2006.16765 (there the shared one is the "meme" model). With scores z_m of the shared model and
z_p of the private one:

    L_p = alpha * CE(z_p, y) + (1 - alpha) * KL(z_m || z_p)          trains the private model
    L_m = beta * CE(z_m, y) + (1 - beta) * KL(z_p || z_m)            trains the shared model

The server averages the shared models, weighted by the number of images; a client predicts with its
private one. Here both models are pFedMMA's adapter (arXiv 2507.05394) on one frozen backbone. Their
parameters are disjoint and a teacher gets no gradient, so one step on L_p + L_m trains both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.adapters.graph_form import GraphForm, below
from pfedmma_deploy.adapters.mma import PARTS
from pfedmma_deploy.adapters.mutual import MutualAdapters
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.methods.base import Batch, Method, Tensors
from pfedmma_deploy.methods.distill import divergence, hooked_logits
from pfedmma_deploy.methods.pfedmma import AdapterParameters, build_adapter
from pfedmma_deploy.methods.pfedmma import graph as private_graph


@dataclass(frozen=True)
class FMLParameters(AdapterParameters):
    """Those of the two adapters, and the weights of the labels."""

    alpha: float = 0.5
    """Weight of the labels for the private model; the rest is the shared model's word."""
    beta: float = 0.5
    """Weight of the labels for the shared model; the rest is the private model's word."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "beta"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} must be from 0 to 1, not {getattr(self, name)}.")


class FMLAdapters(MutualAdapters):
    """The two models and the weights of their losses."""

    alpha: float
    beta: float


def build(backbone: Backbone, parameters: FMLParameters, generator: torch.Generator) -> FMLAdapters:
    """Two adapters of the same shape, drawn one after the other."""
    make = partial(build_adapter, backbone, parameters, generator)
    adapter = FMLAdapters(shared=make(shared=PARTS), private=make(shared=()))
    adapter.alpha, adapter.beta = parameters.alpha, parameters.beta
    return adapter


def loss(backbone: Backbone, adapter: Adapter, batch: Batch) -> Tensor:
    """L_p + L_m of a batch."""
    assert isinstance(adapter, FMLAdapters)
    shared = hooked_logits(backbone, adapter.shared.hook, batch)
    private = hooked_logits(backbone, adapter.private.hook, batch)
    labels = batch.labels.to(private.device)
    return mutual_loss(shared, private, labels, adapter.alpha, adapter.beta)


def mutual_loss(
    shared: Tensor, private: Tensor, labels: Tensor, alpha: float, beta: float
) -> Tensor:
    """L_p + L_m of the scores z_m and z_p [B, C] and the labels [B]."""
    of_private = F.cross_entropy(private, labels), divergence(private, shared)
    of_shared = F.cross_entropy(shared, labels), divergence(shared, private)
    return (
        alpha * of_private[0]
        + (1 - alpha) * of_private[1]
        + beta * of_shared[0]
        + (1 - beta) * of_shared[1]
    )


def graph(tensors: Tensors, parameters: FMLParameters) -> GraphForm:
    """The private model, which is what a client predicts with."""
    return private_graph(below(tensors, "private."), parameters)


FML = Method(
    name="fml",
    paper="FML, arXiv 2006.16765",
    trained="two of pFedMMA's adapters, a shared and a private one",
    shared="the shared one",
    parameters=FMLParameters,
    build=build,
    graph=graph,
    loss=loss,
)
