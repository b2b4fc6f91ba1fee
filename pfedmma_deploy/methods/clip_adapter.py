"""CLIP-Adapter: a residual bottleneck on the image feature, averaged or kept local.

arXiv 2110.04544. With the frozen image feature f:

    f' = alpha * relu(W2 relu(W1 f)) + (1 - alpha) * f        scores = scale * cos(f', t_c)

W1 is D/4 x D, W2 is D x D/4, without biases. The text tower is frozen. The paper knows no clients:
`share=all` averages both matrices, weighted by the number of images; `share=none` leaves every
client with its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pfedmma_deploy.adapters.base import BankModule, ExportBanks
from pfedmma_deploy.adapters.features import FeatureAdapter, of_clients, rows_matmul
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.methods.base import Method, Parameters
from pfedmma_deploy.types import Scope


@dataclass(frozen=True)
class CLIPAdapterParameters(Parameters):
    """Hyper-parameters and their symbols in the paper."""

    ratio: Annotated[float, Field(ge=0, le=1)] = 0.2
    """alpha, the residual ratio."""
    reduction: Annotated[int, Field(ge=1)] = 4
    """What the width D is divided by inside."""
    share: Literal["all", "none"] = "all"
    """all: one adapter, averaged; none: every client has its own."""


class FeatureBottleneck(FeatureAdapter):
    """The bottleneck: `down.weight` [D / reduction, D] and `up.weight` [D, D / reduction].

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

    def export_banks(self, backbone: Backbone) -> list[ExportBanks]:
        """Both layers, weights as `f @ weight` takes them, and the ratio."""
        rows = {
            "down_weight": self.down.weight.detach().T,
            "up_weight": self.up.weight.detach().T,
            "ratio": torch.tensor([self.ratio]),
        }
        return [ExportBanks("image", "head", rows, FeatureBottleneckBanks)]

    def export_settings(self) -> dict[str, Any]:
        """Nothing but the kind."""
        return {"kind": "bottleneck"}


class FeatureBottleneckBanks(BankModule):
    """The bottleneck with a row of weights per client; client 0 has none."""

    def forward(self, f: Tensor, client: Tensor) -> Tensor:
        """f [B, D] -> [B, D]."""
        inner = rows_matmul(f, self.rows("down_weight", client)).relu()
        inner = rows_matmul(inner, self.rows("up_weight", client)).relu()
        return of_clients(f + self.rows("ratio", client) * (inner - f), f, client)


class CLIPAdapter(Method[FeatureBottleneck, CLIPAdapterParameters]):
    """A bottleneck on the image feature, averaged or kept local."""

    name = "clip-adapter"
    paper = "CLIP-Adapter, arXiv 2110.04544"
    trained = "a bottleneck on the image feature"
    shared = "all of it, or nothing (share=none)"
    Parameters = CLIPAdapterParameters

    def build(self, backbone: Backbone, generator: torch.Generator) -> FeatureBottleneck:
        """The bottleneck of the backbone's joint space."""
        parameters = self.parameters
        scope = Scope.SHARED if parameters.share == "all" else Scope.LOCAL
        return FeatureBottleneck(
            backbone.embed_dim, parameters.reduction, parameters.ratio, generator, scope
        )
