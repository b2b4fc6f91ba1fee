"""FedGain: a gain of one's own and a shared shift on the image feature."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from pfedmma_deploy.adapters.base import BankModule, ExportBanks
from pfedmma_deploy.adapters.features import FeatureAdapter
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.methods.base import Method, Parameters
from pfedmma_deploy.types import Scope


@dataclass(frozen=True)
class FedGainParameters(Parameters):
    """What `--set` takes."""

    factor: Annotated[float, Field(gt=0)] = 0.1
    """s, the factor on gain and shift."""


class Gain(FeatureAdapter):
    """f' = f * (1 + s gain) + s shift, for the image feature f [B, D]."""

    def __init__(self, dim: int, factor: float) -> None:
        super().__init__(Scope.LOCAL)
        self.factor = factor
        self.gain, self.shift = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))

    def change(self, features: Tensor) -> Tensor:
        return features * (1 + self.factor * self.gain) + self.factor * self.shift

    def scopes(self) -> dict[str, Scope]:
        return {"gain": Scope.LOCAL, "shift": Scope.SHARED}

    def export_banks(self, backbone: Backbone) -> list[ExportBanks]:
        rows = {
            "gain": self.factor * self.gain.detach(),
            "shift": self.factor * self.shift.detach(),
        }
        return [ExportBanks("image", "head", rows, GainBanks)]


class GainBanks(BankModule):
    """The same for many clients: a row each, zeros for zero-shot."""

    def forward(self, f: Tensor, client: Tensor) -> Tensor:
        return f * (1 + self.rows("gain", client)) + self.rows("shift", client)


class FedGain(Method[Gain, FedGainParameters]):
    name = "fedgain"
    paper = "an example of this documentation"
    trained = "a gain and a shift of the image feature"
    shared = "the shift"
    Parameters = FedGainParameters

    def build(self, backbone: Backbone, generator: torch.Generator) -> Gain:
        return Gain(backbone.embed_dim, self.parameters.factor)
