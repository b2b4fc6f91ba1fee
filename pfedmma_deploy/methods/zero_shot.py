"""Zero-shot CLIP: the frozen backbone, nothing trained (Radford et al., arXiv 2103.00020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.adapters.frozen import Frozen
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.methods.base import Method


@dataclass(frozen=True)
class ZeroShotParameters:
    """None."""


def build(
    backbone: Backbone, parameters: ZeroShotParameters, generator: torch.Generator
) -> Adapter:
    """The backbone as it is."""
    return Frozen()


ZERO_SHOT = Method(
    name="zero-shot",
    paper="CLIP, arXiv 2103.00020",
    trained="nothing",
    shared="nothing",
    folds=True,
    obstacle="every bundle has zero-shot CLIP as its client 0 already",
    parameters=ZeroShotParameters,
    build=build,
)
