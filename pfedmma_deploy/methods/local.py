"""Local training: pFedMMA's adapter on every client, and nothing shared.

What a client reaches without a federation, from the same initial state and with the same budget as
pFedMMA (arXiv 2507.05394): the baseline that any federation has to beat.
"""

from __future__ import annotations

import torch

from pfedmma_deploy.adapters.mma import MultiModalAdapter
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.methods.base import Method
from pfedmma_deploy.methods.pfedmma import AdapterParameters, build_adapter, graph


def build(
    backbone: Backbone, parameters: AdapterParameters, generator: torch.Generator
) -> MultiModalAdapter:
    """The adapter, all of it local."""
    return build_adapter(backbone, parameters, generator, shared=())


LOCAL = Method(
    name="local",
    paper="local training of pFedMMA's adapter, arXiv 2507.05394",
    trained="down, projection and up layers in the upper two thirds of both towers",
    shared="nothing",
    parameters=AdapterParameters,
    build=build,
    graph=graph,
)
