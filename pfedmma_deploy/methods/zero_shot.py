"""Zero-shot CLIP: the frozen backbone, nothing trained (Radford et al., arXiv 2103.00020)."""

from __future__ import annotations

import torch

from pfedmma_deploy.adapters.base import Frozen
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.methods.base import Method, Parameters


class ZeroShot(Method[Frozen, Parameters]):
    """The backbone as it is."""

    name = "zero-shot"
    paper = "CLIP, arXiv 2103.00020"
    trained = "nothing"
    shared = "nothing"
    merges = True
    is_trained = False
    export_blocker = "every bundle has zero-shot CLIP as its client 0 already"

    def build(self, backbone: Backbone, generator: torch.Generator) -> Frozen:
        """No parameters."""
        return Frozen()
