"""FedTPG: text-driven prompt generation (Qiu et al., arXiv 2310.06123, ICLR 2024).

Clients learn together not a prompt but a network that makes one from the names of a task's classes
(see `pfedmma_deploy.adapters.generator`), by the cross-entropy; the server averages the network,
every client counting the same whatever its number of images.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.adapters.generator import GeneratedContext
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.methods.base import Method, uniform_mean
from pfedmma_deploy.methods.ranges import at_least


@dataclass(frozen=True)
class FedTPGParameters:
    """Hyper-parameters and their symbols in the paper."""

    context_vectors: int = 4
    """m, generated vectors before a class name."""
    heads: int = 4
    """Heads of the cross-attention."""

    def __post_init__(self) -> None:
        at_least("context_vectors", self.context_vectors, 1)
        at_least("heads", self.heads, 1)


def build(backbone: Backbone, parameters: FedTPGParameters, generator: torch.Generator) -> Adapter:
    """The generator."""
    return GeneratedContext(backbone, parameters.context_vectors, parameters.heads, generator)


FEDTPG = Method(
    name="fedtpg",
    paper="FedTPG, arXiv 2310.06123 (ICLR 2024)",
    trained="a network that makes a context from the class names",
    shared="the network",
    obstacle="a network makes its context anew from all class names of a task together, and the "
    "text model of a bundle reads one name at a time",
    parameters=FedTPGParameters,
    build=build,
    aggregate=uniform_mean,
    # The authors' released configuration.
    defaults=MappingProxyType({"lr": 0.003, "weight_decay": 1e-5}),
)
