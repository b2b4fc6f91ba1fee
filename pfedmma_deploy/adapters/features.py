"""Small networks behind the image tower, on its projected feature."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.backbone.clip import Backbone, Images, Prefix
from pfedmma_deploy.types import Scope, Tower


class FeatureAdapter(Adapter):
    """A network on CLIP's image feature before it is normalised; the text tower stays frozen.

    Args:
        scope: who holds it, all of it.
    """

    adapts: frozenset[Tower] = frozenset({"image"})

    def __init__(self, scope: Scope) -> None:
        super().__init__()
        self._scope = scope

    @abstractmethod
    def change(self, features: Tensor) -> Tensor:
        """What takes the place of the features [B, D]."""

    def first_block(self, backbone: Backbone, tower: Tower) -> int:
        """The last one of the image tower: what it gives is needed before it is normalised."""
        return backbone.depth(tower) - (1 if tower == "image" else 0)

    @torch.no_grad()
    def raw_features(self, backbone: Backbone, images: Images) -> Tensor:
        """CLIP's own features [B, D] before they are normalised."""
        if isinstance(images, Prefix):
            x, start = images.tokens.to(backbone.device), images.start
        else:
            x, start = backbone.embed_image(images), 0
        read = x.new_zeros(len(x), dtype=torch.long)
        return backbone.project_image(backbone.run_blocks("image", x, start=start, read=read))

    def encode_image(self, backbone: Backbone, images: Images) -> Tensor:
        """Changed features of uint8 pixels [B, H, W, 3] or their prefix: [B, D], L2-normalised."""
        features = self.raw_features(backbone, images)
        return F.normalize(self.change(features), dim=-1)

    def scopes(self) -> dict[str, Scope]:
        """One scope for all."""
        return {name: self._scope for name, _ in self.named_parameters()}


class FeatureGate(FeatureAdapter):
    """FedCLIP's attention: f * softmax(L2 tanh(L1 f)).

    Parameters are named `first.weight` [D, D], `first.bias` [D], and the same under `second`.

    Args:
        dim: D.
        generator: draws both layers, uniform within 1 / sqrt(D) as torch does.
        scope: who holds it.
    """

    def __init__(self, dim: int, generator: torch.Generator, scope: Scope) -> None:
        super().__init__(scope)
        self.first = nn.Linear(dim, dim)
        self.second = nn.Linear(dim, dim)
        for value in self.parameters():
            nn.init.uniform_(value, -(dim**-0.5), dim**-0.5, generator=generator)

    def change(self, features: Tensor) -> Tensor:
        """The gated features [B, D]."""
        gate: Tensor = self.second(self.first(features).tanh())
        return features * gate.softmax(dim=-1)


class FeatureBottleneck(FeatureAdapter):
    """CLIP-Adapter's residual bottleneck: alpha relu(W2 relu(W1 f)) + (1 - alpha) f.

    Parameters are named `down.weight` [D / reduction, D] and `up.weight` [D, D / reduction].

    Args:
        dim: D.
        reduction: what D is divided by inside.
        ratio: alpha.
        generator: draws both layers, Kaiming-uniform as torch does.
        scope: who holds it.
    """

    def __init__(
        self, dim: int, reduction: int, ratio: float, generator: torch.Generator, scope: Scope
    ) -> None:
        super().__init__(scope)
        self.ratio = ratio
        hidden = max(1, dim // reduction)
        self.down = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(hidden, dim, bias=False)
        for layer in (self.down, self.up):
            nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)

    def change(self, features: Tensor) -> Tensor:
        """The mixed features [B, D]."""
        inner: Tensor = self.up(self.down(features).relu()).relu()
        return self.ratio * inner + (1 - self.ratio) * features
