"""FedMaPLe: MaPLe's coupled prompts, averaged over clients.

MaPLe (Khattak et al., arXiv 2210.03117, CVPR 2023) learns prompts in the first blocks of both
towers, those of the image tower being linear functions of those of the text tower (see
`pfedmma_deploy.adapters.coupled`). As a federated baseline (FedTPG, arXiv 2310.06123) the clients
minimise the cross-entropy and the server averages prompts and couplings, weighted by the number of
images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.adapters.coupled import CoupledPrompts
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.methods.base import Method
from pfedmma_deploy.methods.ranges import at_least


@dataclass(frozen=True)
class FedMaPLeParameters:
    """Hyper-parameters and their symbols in the paper."""

    context_vectors: int = 2
    """Learned vectors per block."""
    prompt_depth: int = 9
    """J, the number of blocks from the first one; at most those of the shallower tower."""

    def __post_init__(self) -> None:
        at_least("context_vectors", self.context_vectors, 1)
        at_least("prompt_depth", self.prompt_depth, 1)


def build(
    backbone: Backbone, parameters: FedMaPLeParameters, generator: torch.Generator
) -> Adapter:
    """Prompts and couplings."""
    return CoupledPrompts(backbone, parameters.context_vectors, parameters.prompt_depth, generator)


FEDMAPLE = Method(
    name="fedmaple",
    paper="MaPLe, arXiv 2210.03117 (CVPR 2023), averaged",
    trained="coupled prompts in the first blocks of both towers",
    shared="the prompts and their couplings",
    obstacle="a client's image tower reads more tokens than that of zero-shot CLIP, and all of a "
    "bundle share one graph",
    parameters=FedMaPLeParameters,
    build=build,
)
