"""FedAvg on pFedMMA's adapter: everything trained is averaged.

FedAvg (McMahan et al., arXiv 1602.05629) over the whole multi-modal adapter of pFedMMA
(arXiv 2507.05394): all clients end with one model, w = sum_i n_i / n * w_i.
"""

from __future__ import annotations

import torch

from pfedmma_deploy.adapters.mma import PARTS, MultiModalAdapter
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.methods.base import Method
from pfedmma_deploy.methods.pfedmma import AdapterParameters, build_adapter, graph


def build(
    backbone: Backbone, parameters: AdapterParameters, generator: torch.Generator
) -> MultiModalAdapter:
    """The adapter, all of it shared."""
    return build_adapter(backbone, parameters, generator, shared=PARTS)


FEDAVG_MMA = Method(
    name="fedavg-mma",
    paper="FedAvg, arXiv 1602.05629, on pFedMMA's adapter",
    trained="down, projection and up layers in the upper two thirds of both towers",
    shared="all of it",
    parameters=AdapterParameters,
    build=build,
    graph=graph,
)
