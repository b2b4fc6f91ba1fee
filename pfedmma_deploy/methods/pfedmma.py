"""pFedMMA: personalized federated fine-tuning with multi-modal adapters.

arXiv 2507.05394 (ICLR 2026). One common initial state. Each round every selected client trains all
its adapter parameters for E local epochs; the server averages only the shared projections W,
weighted by the number of images; every client receives the average. Down and up layers never leave
the client: everything is trained, only the projection is shared.

`share` and `towers` are the paper's ablations: what travels beside the projection, and which of the
two towers is adapted.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch

from pfedmma_deploy.adapters.graph_form import GraphForm, multimodal_form
from pfedmma_deploy.adapters.mma import PARTS, MultiModalAdapter, Part
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.methods.base import Method, Tensors
from pfedmma_deploy.methods.ranges import above, at_least, one_of
from pfedmma_deploy.types import TOWERS, Tower

TOWER_CHOICES: Final = MappingProxyType[str, tuple[Tower, ...]](
    {"both": TOWERS, "image": ("image",), "text": ("text",)}
)
SHARE_CHOICES: Final = MappingProxyType[str, tuple[Part, ...]](
    {
        "projection": ("projection",),
        "projection+down": ("projection", "down"),
        "projection+up": ("projection", "up"),
        "all": PARTS,
        "none": (),
    }
)


@dataclass(frozen=True)
class AdapterParameters:
    """Hyper-parameters of the multi-modal adapter and their symbols in the paper."""

    bottleneck_dim: int = 32
    """r"""
    scale: float = 1e-3
    """s"""
    towers: str = "both"
    """Towers that are adapted: both, image or text."""

    def __post_init__(self) -> None:
        at_least("bottleneck_dim", self.bottleneck_dim, 1)
        above("scale", self.scale, 0)
        one_of("towers", self.towers, tuple(TOWER_CHOICES))


@dataclass(frozen=True)
class PFedMMAParameters(AdapterParameters):
    """Those of the adapter, and what of it is shared."""

    share: str = "projection"
    """Parts that are averaged: projection (the paper's), projection+down, projection+up, all,
    none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("share", self.share, tuple(SHARE_CHOICES))


def build(
    backbone: Backbone, parameters: PFedMMAParameters, generator: torch.Generator
) -> MultiModalAdapter:
    """Adapters in the upper two thirds of the towers."""
    return build_adapter(backbone, parameters, generator, SHARE_CHOICES[parameters.share])


def build_adapter(
    backbone: Backbone,
    parameters: AdapterParameters,
    generator: torch.Generator,
    shared: Collection[Part],
) -> MultiModalAdapter:
    """The multi-modal adapter of a backbone, with the parts of it that are averaged."""
    return MultiModalAdapter(
        widths={tower: backbone.width(tower) for tower in TOWERS},
        depths={tower: backbone.depth(tower) for tower in TOWERS},
        bottleneck_dim=parameters.bottleneck_dim,
        scale=parameters.scale,
        generator=generator,
        shared=shared,
        towers=TOWER_CHOICES[parameters.towers],
    )


def graph(tensors: Tensors, parameters: AdapterParameters) -> GraphForm:
    """The adapter as it is."""
    return multimodal_form(tensors, parameters.bottleneck_dim, parameters.scale)


PFEDMMA = Method(
    name="pfedmma",
    paper="pFedMMA, arXiv 2507.05394 (ICLR 2026)",
    trained="down, projection and up layers in the upper two thirds of both towers",
    shared="the projections",
    parameters=PFedMMAParameters,
    build=build,
    graph=graph,
)
