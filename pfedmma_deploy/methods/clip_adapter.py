"""CLIP-Adapter: a residual bottleneck on the image feature, averaged or kept local.

arXiv 2110.04544. With the frozen image feature f:

    f' = alpha * relu(W2 relu(W1 f)) + (1 - alpha) * f        scores = scale * cos(f', t_c)

W1 is D/4 x D, W2 is D x D/4, without biases. The text tower is frozen. The paper knows no clients:
`share=all` averages both matrices, weighted by the number of images; `share=none` leaves every
client with its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pfedmma_deploy.adapters.features import FeatureBottleneck
from pfedmma_deploy.adapters.graph_form import GraphForm
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.methods.base import Method, Tensors
from pfedmma_deploy.methods.ranges import at_least, one_of
from pfedmma_deploy.types import Scope


@dataclass(frozen=True)
class CLIPAdapterParameters:
    """Hyper-parameters and their symbols in the paper."""

    ratio: float = 0.2
    """alpha, the residual ratio."""
    reduction: int = 4
    """What the width D is divided by inside."""
    share: str = "all"
    """all: one adapter, averaged; none: every client has its own."""

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise UsageError(f"ratio must be from 0 to 1, not {self.ratio}.")
        at_least("reduction", self.reduction, 1)
        one_of("share", self.share, ("all", "none"))


def build(
    backbone: Backbone, parameters: CLIPAdapterParameters, generator: torch.Generator
) -> FeatureBottleneck:
    """The bottleneck of the backbone's joint space."""
    scope = Scope.SHARED if parameters.share == "all" else Scope.LOCAL
    return FeatureBottleneck(
        backbone.embed_dim, parameters.reduction, parameters.ratio, generator, scope
    )


def graph(tensors: Tensors, parameters: CLIPAdapterParameters) -> GraphForm:
    """The bottleneck on the image feature."""
    layers = {
        f"image.head.{layer}_weight": tensors[f"{layer}.weight"].T.contiguous()
        for layer in ("down", "up")
    }
    ratio = {"image.head.ratio": torch.tensor([parameters.ratio])}
    return GraphForm({**layers, **ratio}, {"kind": "bottleneck"})


CLIP_ADAPTER = Method(
    name="clip-adapter",
    paper="CLIP-Adapter, arXiv 2110.04544",
    trained="a bottleneck on the image feature",
    shared="all of it, or nothing (share=none)",
    parameters=CLIPAdapterParameters,
    build=build,
    graph=graph,
)
