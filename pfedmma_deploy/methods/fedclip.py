"""FedCLIP: an attention gate on the image feature, averaged over all clients.

arXiv 2302.13485. With the frozen image feature f, before it is normalised:

    f' = f * softmax(L2 tanh(L1 f))        scores = scale * cos(f', t_c)

L1 and L2 are D x D layers with biases. They are all that is trained and all that travels; the
server averages uniformly. The text tower is frozen. A gate starts near 1 / D everywhere, so that a
fresh client is close to zero-shot CLIP.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from pfedmma_deploy.adapters.base import BankModule, ExportBanks
from pfedmma_deploy.adapters.features import FeatureAdapter, of_clients, rows_matmul
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.methods.base import Method, Parameters
from pfedmma_deploy.types import Scope


def gate(f: Tensor, linear: Callable[[str, Tensor], Tensor]) -> Tensor:
    """f * softmax(L2 tanh(L1 f)), [B, D]; `linear` applies the `first` or the `second` layer."""
    return f * linear("second", linear("first", f).tanh()).softmax(dim=-1)


class FeatureGate(FeatureAdapter):
    """The gate: `first.weight` [D, D], `first.bias` [D], and the same under `second`.

    Args:
        dim: D.
        generator: draws both layers, uniform within 1 / sqrt(D) as torch does.
    """

    def __init__(self, dim: int, generator: torch.Generator) -> None:
        super().__init__(Scope.SHARED)
        self.first = nn.Linear(dim, dim)
        self.second = nn.Linear(dim, dim)
        for value in self.parameters():
            nn.init.uniform_(value, -(dim**-0.5), dim**-0.5, generator=generator)

    def change(self, features: Tensor) -> Tensor:
        """The gated features [B, D]."""
        return gate(features, lambda layer, x: self.get_submodule(layer)(x))

    def export_banks(self, backbone: Backbone) -> list[ExportBanks]:
        """Both layers, weights as `f @ weight` takes them."""
        rows = {}
        for name, layer in (("first", self.first), ("second", self.second)):
            rows[f"{name}_weight"] = layer.weight.detach().T
            rows[f"{name}_bias"] = layer.bias.detach()
        return [ExportBanks("image", "head", rows, GateBanks)]

    def export_settings(self) -> dict[str, Any]:
        """Nothing but the kind."""
        return {"kind": "gate"}


class GateBanks(BankModule):
    """The gate with a row of weights per client; client 0 has none."""

    def forward(self, f: Tensor, client: Tensor) -> Tensor:
        """f [B, D] -> [B, D]."""

        def linear(layer: str, x: Tensor) -> Tensor:
            weight, bias = self.rows(f"{layer}_weight", client), self.rows(f"{layer}_bias", client)
            return rows_matmul(x, weight) + bias

        return of_clients(gate(f, linear), f, client)


class FedCLIP(Method[FeatureGate, Parameters]):
    """A gate as wide as CLIP's joint space, all of it shared."""

    name = "fedclip"
    paper = "FedCLIP, arXiv 2302.13485"
    trained = "an attention gate on the image feature"
    shared = "all of it"
    defaults = MappingProxyType({"optimizer": "adam", "lr": 5e-5})
    rule = "uniform-mean"

    def build(self, backbone: Backbone, generator: torch.Generator) -> FeatureGate:
        """The gate of the backbone's joint space."""
        return FeatureGate(backbone.embed_dim, generator)
