"""FedCLIP: an attention gate on the image feature, averaged over all clients.

arXiv 2302.13485. With the frozen image feature f, before it is normalised:

    f' = f * softmax(L2 tanh(L1 f))        scores = scale * cos(f', t_c)

L1 and L2 are D x D layers with biases. They are all that is trained and all that travels; the
server averages uniformly. The text tower is frozen. A gate starts near 1 / D everywhere, so that a
fresh client is close to zero-shot CLIP.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch

from pfedmma_deploy.adapters.features import FeatureGate
from pfedmma_deploy.adapters.graph_form import GraphForm
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.methods.base import Method, Tensors, uniform_mean
from pfedmma_deploy.types import Scope


@dataclass(frozen=True)
class FedCLIPParameters:
    """None: the gate is as wide as CLIP's joint space."""


def build(
    backbone: Backbone, parameters: FedCLIPParameters, generator: torch.Generator
) -> FeatureGate:
    """The gate of the backbone's joint space."""
    return FeatureGate(backbone.embed_dim, generator, Scope.SHARED)


def graph(tensors: Tensors, parameters: FedCLIPParameters) -> GraphForm:
    """The gate on the image feature."""
    found: Tensors = {}
    for layer in ("first", "second"):
        found[f"image.head.{layer}_weight"] = tensors[f"{layer}.weight"].T.contiguous()
        found[f"image.head.{layer}_bias"] = tensors[f"{layer}.bias"]
    return GraphForm(found, {"kind": "gate"})


FEDCLIP = Method(
    name="fedclip",
    paper="FedCLIP, arXiv 2302.13485",
    trained="an attention gate on the image feature",
    shared="all of it",
    parameters=FedCLIPParameters,
    build=build,
    graph=graph,
    aggregate=uniform_mean,
    defaults=MappingProxyType({"optimizer": "adam", "lr": 5e-5}),
)
