"""What adapters share that work on the image tower's projected feature."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma_deploy.adapters.base import Adapter, mix_features
from pfedmma_deploy.backbone.clip import Activations, Backbone, Images
from pfedmma_deploy.types import Interpolation, Scope, Tower


class FeatureAdapter(Adapter):
    """A network on CLIP's image feature before it is normalised; the text tower stays frozen.

    Args:
        scope: who holds it, all of it.
    """

    adapts: frozenset[Tower] = frozenset({"image"})
    interpolation: ClassVar[Interpolation] = "features"

    def __init__(self, scope: Scope) -> None:
        super().__init__()
        self._scope = scope

    @abstractmethod
    def change(self, features: Tensor) -> Tensor:
        """What takes the place of the features [B, D]."""

    def first_block(self, backbone: Backbone, tower: Tower) -> int:
        """The last one of the image tower: its output is needed before it is normalised."""
        return backbone.depth(tower) - (1 if tower == "image" else 0)

    @torch.no_grad()
    def raw_features(self, backbone: Backbone, images: Images) -> Tensor:
        """CLIP's own features [B, D] before they are normalised."""
        if isinstance(images, Activations):
            x, start = images.tokens.to(backbone.device), images.start
        else:
            x, start = backbone.embed_image(images), 0
        read = x.new_zeros(len(x), dtype=torch.long)
        return backbone.project_image(backbone.run_blocks("image", x, start=start, read=read))

    def encode_image(self, backbone: Backbone, images: Images) -> Tensor:
        """Changed features of uint8 pixels [B, H, W, 3] or activations: [B, D], L2-normalised."""
        features = self.raw_features(backbone, images)
        own = F.normalize(self.change(features), dim=-1)
        if self.strength == 1:
            return own
        return mix_features(F.normalize(features, dim=-1), own, self.strength)

    def scopes(self) -> dict[str, Scope]:
        """One scope for all."""
        return {name: self._scope for name, _ in self.named_parameters()}


def rows_matmul(f: Tensor, weight: Tensor) -> Tensor:
    """f [B, in] times one weight per item, [B, in, out]: [B, out]."""
    return (f.unsqueeze(1) @ weight).squeeze(1)


def of_clients(changed: Tensor, f: Tensor, client: Tensor) -> Tensor:
    """`changed` for clients; client 0 keeps the feature f bit-identical."""
    return torch.where((client > 0).unsqueeze(-1), changed, f)
