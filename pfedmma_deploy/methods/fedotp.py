"""FedOTP: a global and a local prompt work together (Li et al., arXiv 2403.00041, CVPR 2024).

A client trains two contexts; the server averages the first, weighted by the number of images, and
the second stays. An image is compared with a class patch by patch: unbalanced optimal transport
between its patches and the two prompts decides which prompt answers for which patch, and which
patches stay out (see `pfedmma_deploy.adapters.transport`). With C the cross-entropy,

    L = C(scale * sum(T * S), y)        T without gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.adapters.transport import TransportPrompts
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.methods.base import Method
from pfedmma_deploy.methods.ranges import above, at_least, between


@dataclass(frozen=True)
class FedOTPParameters:
    """Hyper-parameters and their symbols in the paper."""

    context_vectors: int = 16
    """Learned vectors before a class name, in each of the two prompts."""
    mass: float = 0.8
    """gamma, the share of the patches' mass that is transported."""
    epsilon: float = 0.1
    """lambda, the weight of the entropy: 0.1 or 0.01."""
    iterations: int = 100
    """Steps of the transport at most."""

    def __post_init__(self) -> None:
        at_least("context_vectors", self.context_vectors, 1)
        between("mass", self.mass, 0, 1)
        above("epsilon", self.epsilon, 0)
        at_least("iterations", self.iterations, 1)


def build(backbone: Backbone, parameters: FedOTPParameters, generator: torch.Generator) -> Adapter:
    """Both contexts, N(0, 0.02^2)."""
    return TransportPrompts(
        backbone,
        parameters.context_vectors,
        generator,
        mass=parameters.mass,
        epsilon=parameters.epsilon,
        iterations=parameters.iterations,
    )


FEDOTP = Method(
    name="fedotp",
    paper="FedOTP, arXiv 2403.00041 (CVPR 2024)",
    trained="a global and a local context",
    shared="the global context",
    obstacle="a class score is an optimal transport over the image's patches, not the cosine of "
    "two features that a bundle computes",
    parameters=FedOTPParameters,
    build=build,
)
