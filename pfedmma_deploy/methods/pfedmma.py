"""pFedMMA: personalized federated fine-tuning with multi-modal adapters.

arXiv 2507.05394 (ICLR 2026). One common initial state. Each round every selected client trains all
its adapter parameters for E local epochs; the server averages only the shared projections W,
weighted by the number of images; every client receives the average. Down and up layers never leave
the client: everything is trained, only the projection is shared.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.adapters.mma import MultiModalAdapter
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.methods.base import Method
from pfedmma_deploy.types import TOWERS


@dataclass(frozen=True)
class PFedMMAParameters:
    """Hyper-parameters and their symbols in the paper."""

    bottleneck_dim: int = 32
    """r"""
    scale: float = 1e-3
    """s"""

    def __post_init__(self) -> None:
        if self.bottleneck_dim < 1:
            raise UsageError(f"bottleneck_dim must be 1 or more, not {self.bottleneck_dim}.")
        if self.scale <= 0:
            raise UsageError(f"scale must be above 0, not {self.scale}.")


def build(backbone: Backbone, parameters: PFedMMAParameters, generator: torch.Generator) -> Adapter:
    """Adapters in the upper two thirds of both towers."""
    return MultiModalAdapter(
        widths={tower: backbone.width(tower) for tower in TOWERS},
        depths={tower: backbone.depth(tower) for tower in TOWERS},
        bottleneck_dim=parameters.bottleneck_dim,
        scale=parameters.scale,
        generator=generator,
    )


PFEDMMA = Method(
    name="pfedmma",
    paper="pFedMMA, arXiv 2507.05394 (ICLR 2026)",
    trained="down, projection and up layers in the upper two thirds of both towers",
    shared="the projections",
    parameters=PFedMMAParameters,
    build=build,
)
