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
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pfedmma_deploy.adapters.base import Adapter, ExportBanks
from pfedmma_deploy.adapters.multimodal import LAYERS, MultiModalAdapter
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.methods.base import Batch, Method, divergence, hooked_logits
from pfedmma_deploy.methods.pfedmma import AdapterParameters, build_adapter
from pfedmma_deploy.types import Scope, Tower


@dataclass(frozen=True)
class FMLParameters(AdapterParameters):
    """Those of the two adapters, and the weights of the labels."""

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the labels for the private model; the rest is the shared model's word."""
    beta: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the labels for the shared model; the rest is the private model's word."""


class MutualAdapters(Adapter):
    """A shared model and a private one; the private one is the client's.

    Parameters are named `shared.*` and `private.*`, within as `MultiModalAdapter` names them.

    Args:
        shared: all of it is averaged.
        private: all of it stays.
    """

    def __init__(self, shared: MultiModalAdapter, private: MultiModalAdapter) -> None:
        super().__init__()
        self.shared = shared
        self.private = private
        self.adapts = private.adapts

    def first_block(self, backbone: Backbone, tower: Tower) -> int:
        """Both models sit in the same blocks."""
        return self.private.first_block(backbone, tower)

    def hook(self, tower: Tower, block: int, h: Tensor) -> Tensor | None:
        """What the private model adds."""
        return self.private.hook(tower, block, h)

    def export_banks(self, backbone: Backbone) -> list[ExportBanks]:
        """Those of the private model, which a client predicts with."""
        return self.private.export_banks(backbone)

    def export_settings(self) -> dict[str, Any]:
        """Those of the private model."""
        return self.private.export_settings()

    def scopes(self) -> dict[str, Scope]:
        """Those of the two models."""
        return {f"shared.{name}": scope for name, scope in self.shared.scopes().items()} | {
            f"private.{name}": scope for name, scope in self.private.scopes().items()
        }


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


class FML(Method[MutualAdapters, FMLParameters]):
    """Two of pFedMMA's adapters on one backbone."""

    name = "fml"
    paper = "FML, arXiv 2006.16765"
    trained = "two of pFedMMA's adapters, a shared and a private one"
    shared = "the shared one"
    Parameters = FMLParameters

    def build(self, backbone: Backbone, generator: torch.Generator) -> MutualAdapters:
        """Two adapters of the same shape, drawn one after the other."""
        return MutualAdapters(
            shared=build_adapter(backbone, self.parameters, generator, shared=LAYERS),
            private=build_adapter(backbone, self.parameters, generator, shared=()),
        )

    def loss(self, backbone: Backbone, adapter: MutualAdapters, batch: Batch) -> Tensor:
        """L_p + L_m of a batch."""
        shared = hooked_logits(backbone, adapter.shared.hook, batch)
        private = hooked_logits(backbone, adapter.private.hook, batch)
        labels = batch.labels.to(private.device)
        return mutual_loss(shared, private, labels, self.parameters.alpha, self.parameters.beta)
