"""Two parallel bottlenecks in every block of both towers: one that travels and one that stays."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.backbone.blocks import BlockHook
from pfedmma_deploy.types import TOWERS, Scope, Tower


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
    """A shared and a local bottleneck per block, which together add the mean of what each says.

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
        return (self._say("local", tower, block, h) + self._say("shared", tower, block, h)) / 2

    def shared_hook(self, tower: Tower, block: int, h: Tensor) -> Tensor:
        """The shared bottleneck alone."""
        return self._say("shared", tower, block, h)

    def teacher_hook(self, received: Mapping[str, Tensor]) -> BlockHook:
        """The mean of the local bottleneck and of the shared one as it was received, frozen."""

        def hook(tower: Tower, block: int, h: Tensor) -> Tensor:
            frozen = {
                name: received[f"shared.{tower}.{block}.{name}"]
                for name in ("down.weight", "down.bias", "up.weight", "up.bias")
            }
            inner = F.relu(F.linear(h, frozen["down.weight"], frozen["down.bias"]))
            said = F.linear(inner, frozen["up.weight"], frozen["up.bias"])
            return (self._say("local", tower, block, h) + said) / 2

        return hook

    def scopes(self) -> dict[str, Scope]:
        """Two halves: one is shared, one is local."""
        return {
            f"{scope}.{name}": scope
            for scope in (Scope.SHARED, Scope.LOCAL)
            for name, _ in self.get_submodule(scope).named_parameters()
        }

    def _say(self, side: str, tower: Tower, block: int, h: Tensor) -> Tensor:
        said: Tensor = self.get_submodule(f"{side}.{tower}.{block}")(h)
        return said
