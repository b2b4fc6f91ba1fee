"""FedDAT: a shared and a local adapter that teach each other beside a frozen received copy.

arXiv 2308.12305. In every block of both towers stand two parallel bottlenecks, A_s and A_c. A_s is
averaged over clients, weighted by the number of images; A_c never leaves. At the start of a round a
client keeps a frozen copy A_s* of what it received. The dual-adapter teacher adds (A_c + A_s*) / 2,
with scores z_t; A_s alone gives scores z_s. Each learns from the labels and from the other:

    L_s = (CE(z_s, y) + KL(z_t || z_s)) / 2          trains A_s
    L_c = (CE(z_t, y) + KL(z_s || z_t)) / 2          trains A_c

Whoever is the teacher gets no gradient, and the parameters of both losses are disjoint, so one step
on L_s + L_c is what the paper does in two. A client predicts with (A_c + A_s) / 2. The bottlenecks
read the block's `ln_1`, as pFedMMA's do, and start by adding nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma_deploy.adapters.base import Adapter, ExportBanks
from pfedmma_deploy.adapters.multimodal import BottleneckBanks, bottleneck_reference
from pfedmma_deploy.backbone.blocks import BlockHook
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.methods.base import (
    Batch,
    ClientRun,
    Method,
    Parameters,
    divergence,
    hooked_logits,
)
from pfedmma_deploy.types import TOWERS, Scope, Tower


@dataclass(frozen=True)
class FedDATParameters(Parameters):
    """Hyper-parameters."""

    reduction: Annotated[int, Field(ge=1)] = 16
    """What the token width is divided by inside a bottleneck."""


class Parallel(nn.Module):
    """up(relu(down(h))) beside one block; `up` starts at zero, so that it adds nothing at first.

    Args:
        width: token width d.
        reduction: what d is divided by inside.
        generator: draws `down`, N(0, 0.02).
    """

    def __init__(self, width: int, reduction: int, generator: torch.Generator) -> None:
        super().__init__()
        hidden = max(1, width // reduction)
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)
        nn.init.normal_(self.down.weight, std=0.02, generator=generator)
        for value in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(value)

    def forward(self, h: Tensor) -> Tensor:
        """h [B, T, d] -> [B, T, d]."""
        added: Tensor = self.up(F.relu(self.down(h)))
        return added


class DualAdapter(Adapter):
    """A shared and a local bottleneck per block, which together add their mean.

    Parameters are named `shared.{tower}.{block}.down.weight` [d / reduction, d], `.down.bias`,
    `.up.weight` [d, d / reduction], `.up.bias`, and the same under `local`.

    Args:
        widths: token width d of each tower.
        depths: number of blocks of each tower.
        reduction: what d is divided by inside.
        generator: drives the initialisation.
    """

    def __init__(
        self,
        widths: Mapping[Tower, int],
        depths: Mapping[Tower, int],
        reduction: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        for side in ("shared", "local"):
            towers: dict[str, nn.Module] = {
                tower: nn.ModuleDict(
                    {
                        str(block): Parallel(widths[tower], reduction, generator)
                        for block in range(depths[tower])
                    }
                )
                for tower in TOWERS
            }
            self.add_module(side, nn.ModuleDict(towers))

    def hook(self, tower: Tower, block: int, h: Tensor) -> Tensor | None:
        """The mean of both bottlenecks: the client's own model."""
        return (self._added("local", tower, block, h) + self._added("shared", tower, block, h)) / 2

    def shared_hook(self, tower: Tower, block: int, h: Tensor) -> Tensor:
        """The shared bottleneck alone."""
        return self._added("shared", tower, block, h)

    def teacher_hook(self, received: Mapping[str, Tensor]) -> BlockHook:
        """The mean of the local bottleneck and of the shared one as it was received, frozen."""

        def hook(tower: Tower, block: int, h: Tensor) -> Tensor:
            frozen = {
                name: received[f"shared.{tower}.{block}.{name}"]
                for name in ("down.weight", "down.bias", "up.weight", "up.bias")
            }
            inner = F.relu(F.linear(h, frozen["down.weight"], frozen["down.bias"]))
            added = F.linear(inner, frozen["up.weight"], frozen["up.bias"])
            return (self._added("local", tower, block, h) + added) / 2

        return hook

    def export_banks(self, backbone: Backbone) -> list[ExportBanks]:
        """Both bottlenecks of a block as one of pFedMMA's adapters, s = 1/2.

        The bottlenecks stand side by side, the projection between down and up is the identity
        (what has passed one ReLU passes another as it is), and the narrower tower is filled up
        with zeros, so that one rank describes the whole bundle.
        """
        rank = self._rank()
        found = []
        for tower in TOWERS:
            for block in range(backbone.depth(tower)):
                pair = [self._parallel(side, tower, block) for side in ("shared", "local")]
                down = torch.cat([one.down.weight for one in pair]).detach()
                bias = torch.cat([one.down.bias for one in pair]).detach()
                up = torch.cat([one.up.weight for one in pair], dim=1).detach()
                missing = rank - len(down)
                rows = {
                    "down_weight": F.pad(down, (0, 0, 0, missing)).T,
                    "down_bias": F.pad(bias, (0, missing)).unsqueeze(0),
                    "pair_weight": torch.eye(rank),
                    "pair_bias": torch.zeros(1, rank),
                    "up_weight": F.pad(up, (0, missing)).T,
                    "up_bias": (pair[0].up.bias + pair[1].up.bias).detach().unsqueeze(0),
                }
                build = partial(BottleneckBanks, scale=0.5)
                reference = partial(bottleneck_reference, scale=0.5)
                place = f"blocks.{block}.adapter"
                found.append(ExportBanks(tower, place, rows, build, reference))
        return found

    def export_settings(self) -> dict[str, Any]:
        """As those of pFedMMA's adapter."""
        blocks = {
            tower: [int(b) for b, _ in self.get_submodule(f"local.{tower}").named_children()]
            for tower in TOWERS
        }
        rank = self._rank()
        return {"kind": "multimodal", "bottleneck_dim": rank, "scale": 0.5, "blocks": blocks}

    def _rank(self) -> int:
        """Of both bottlenecks side by side, in the wider tower."""
        return 2 * max(len(self._parallel("local", tower, 0).down.bias) for tower in TOWERS)

    def scopes(self) -> dict[str, Scope]:
        """Two halves: one is shared, one is local."""
        return {
            f"{scope}.{name}": scope
            for scope in (Scope.SHARED, Scope.LOCAL)
            for name, _ in self.get_submodule(scope).named_parameters()
        }

    def _parallel(self, side: str, tower: Tower, block: int) -> Parallel:
        found = self.get_submodule(f"{side}.{tower}.{block}")
        assert isinstance(found, Parallel)
        return found

    def _added(self, side: str, tower: Tower, block: int, h: Tensor) -> Tensor:
        added: Tensor = self._parallel(side, tower, block)(h)
        return added


def mutual_loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """L_s + L_c of the scores z_s and z_t [B, C] and the labels [B]."""
    of_shared = F.cross_entropy(student, labels) + divergence(student, teacher)
    of_local = F.cross_entropy(teacher, labels) + divergence(teacher, student)
    return of_shared / 2 + of_local / 2


class FedDAT(Method[DualAdapter, FedDATParameters]):
    """A shared and a local bottleneck per block that teach each other."""

    name = "feddat"
    paper = "FedDAT, arXiv 2308.12305"
    trained = "two parallel adapters in every block of both towers"
    shared = "one of the two"
    Parameters = FedDATParameters
    defaults = MappingProxyType({"optimizer": "adamw", "lr": 1e-4})

    def build(self, backbone: Backbone, generator: torch.Generator) -> DualAdapter:
        """Both bottlenecks in every block of both towers."""
        return DualAdapter(
            widths={tower: backbone.width(tower) for tower in TOWERS},
            depths={tower: backbone.depth(tower) for tower in TOWERS},
            reduction=self.parameters.reduction,
            generator=generator,
        )

    def loss(self, backbone: Backbone, adapter: DualAdapter, batch: Batch) -> Tensor:
        """L_s + L_c of a batch."""
        teacher = hooked_logits(backbone, adapter.teacher_hook(batch.received), batch)
        student = hooked_logits(backbone, adapter.shared_hook, batch)
        return mutual_loss(student, teacher, batch.labels.to(student.device))

    def train_client(self, run: ClientRun[DualAdapter]) -> float:
        """Local epochs beside the frozen copy, which is put where the backbone is once."""
        run.received = {n: value.to(run.backbone.device) for n, value in run.received.items()}
        return run.fit()
