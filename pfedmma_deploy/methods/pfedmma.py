"""pFedMMA: personalized federated fine-tuning with multi-modal adapters; two baselines beside it.

arXiv 2507.05394 (ICLR 2026). One common initial state. Each round every selected client trains all
its adapter parameters for E local epochs; the server averages only the shared projections W,
weighted by the number of images; every client receives the average. Down and up layers never leave
the client: everything is trained, only the projection is shared.

`share` and `towers` are the paper's ablations: what travels beside the projection, and which of the
two towers is adapted. The two ends of `share` are baselines of their own: `local` shares nothing,
`fedavg-mma` everything.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Final, Literal

import torch
from pydantic import Field

from pfedmma_deploy.adapters.multimodal import LAYERS, Layer, MultiModalAdapter
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.methods.base import Method, Parameters
from pfedmma_deploy.types import TOWERS, Tower

TOWER_CHOICES: Final = MappingProxyType[str, tuple[Tower, ...]](
    {"both": TOWERS, "image": ("image",), "text": ("text",)}
)
SHARE_CHOICES: Final = MappingProxyType[str, tuple[Layer, ...]](
    {
        "projection": ("projection",),
        "projection+down": ("projection", "down"),
        "projection+up": ("projection", "up"),
        "all": LAYERS,
        "none": (),
    }
)


@dataclass(frozen=True)
class AdapterParameters(Parameters):
    """Hyper-parameters of the multi-modal adapter and their symbols in the paper."""

    bottleneck_dim: Annotated[int, Field(ge=1)] = 32
    """r"""
    scale: Annotated[float, Field(gt=0)] = 1e-3
    """s"""
    towers: Literal["both", "image", "text"] = "both"
    """Towers that are adapted: both, image or text."""


@dataclass(frozen=True)
class PFedMMAParameters(AdapterParameters):
    """Those of the adapter, and what of it is shared."""

    share: Literal["projection", "projection+down", "projection+up", "all", "none"] = "projection"
    """Layers that are averaged: projection (the paper's), projection+down, projection+up, all,
    none."""


def build_adapter(
    backbone: Backbone,
    parameters: AdapterParameters,
    generator: torch.Generator,
    shared: Collection[Layer],
) -> MultiModalAdapter:
    """The multi-modal adapter of a backbone, with the layers of it that are averaged."""
    return MultiModalAdapter(
        widths={tower: backbone.width(tower) for tower in TOWERS},
        depths={tower: backbone.depth(tower) for tower in TOWERS},
        bottleneck_dim=parameters.bottleneck_dim,
        scale=parameters.scale,
        generator=generator,
        shared=shared,
        towers=TOWER_CHOICES[parameters.towers],
    )


class PFedMMA(Method[MultiModalAdapter, PFedMMAParameters]):
    """Everything is trained, the projection is shared."""

    name = "pfedmma"
    paper = "pFedMMA, arXiv 2507.05394 (ICLR 2026)"
    trained = "down, projection and up layers in the upper two thirds of both towers"
    shared = "the projections"
    merge_blocker = (
        "its adapter computes s * up(relu(W relu(down(h)))) beside each block, and what passes "
        "a ReLU is no matrix that could be added to the block's own. "
    )
    Parameters = PFedMMAParameters

    def build(self, backbone: Backbone, generator: torch.Generator) -> MultiModalAdapter:
        """Adapters in the upper two thirds of the towers."""
        share = SHARE_CHOICES[self.parameters.share]
        return build_adapter(backbone, self.parameters, generator, share)


class Local(Method[MultiModalAdapter, AdapterParameters]):
    """What a client reaches without a federation: the baseline that any federation has to beat.

    From the same initial state as pFedMMA and with the same budget.
    """

    name = "local"
    paper = "local training of pFedMMA's adapter, arXiv 2507.05394"
    trained = PFedMMA.trained
    shared = "nothing"
    merge_blocker = PFedMMA.merge_blocker
    Parameters = AdapterParameters

    def build(self, backbone: Backbone, generator: torch.Generator) -> MultiModalAdapter:
        """The adapter, all of it local."""
        return build_adapter(backbone, self.parameters, generator, shared=())


class FedAvgMMA(Method[MultiModalAdapter, AdapterParameters]):
    """FedAvg (McMahan et al., arXiv 1602.05629): w = sum_i n_i / n * w_i over the whole adapter."""

    name = "fedavg-mma"
    paper = "FedAvg, arXiv 1602.05629, on pFedMMA's adapter"
    trained = PFedMMA.trained
    shared = "all of it"
    merge_blocker = PFedMMA.merge_blocker
    Parameters = AdapterParameters

    def build(self, backbone: Backbone, generator: torch.Generator) -> MultiModalAdapter:
        """The adapter, all of it shared."""
        return build_adapter(backbone, self.parameters, generator, shared=LAYERS)
