"""The multi-modal adapter of pFedMMA: per-tower down and up layers around a shared projection.

Source: pFedMMA, arXiv 2507.05394 (ICLR 2026). In every adapted block, parallel to the whole block
and on all tokens, reading the block's own frozen `ln_1`:

    a = s * (Up_m relu(W relu(Down_m h + b_d) + b_w) + b_u)        h = ln_1(x), m in {image, text}

`W` is one Linear per pair of blocks and serves both towers: the cross-modal bridge. The forward
pass is scaled by s, yet adapter parameters receive gradients as if s were 1, while the gradient
that flows on into the trunk is the true one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.types import TOWERS, Scope, Tower

Part = Literal["projection", "down", "up"]
"""What a layer of the adapter is."""
PARTS: tuple[Part, ...] = get_args(Part)
JUST_PROJECTIONS: tuple[Part, ...] = ("projection",)


def pair_count(image_depth: int, text_depth: int) -> int:
    """P, the number of adapted blocks of each tower: its upper two thirds, min over the towers."""
    return min(math.ceil(2 * image_depth / 3), math.ceil(2 * text_depth / 3))


class MultiModalAdapter(Adapter):
    """Adapters of the last P blocks of both towers, pair p joining two blocks by one projection.

    Parameters are named `image.{block}.down.weight` [r, d], `.down.bias` [r], `.up.weight` [d, r],
    `.up.bias` [d], the same under `text.{block}`, and `pair.{p}.weight` [r, r],
    `pair.{p}.bias` [r].

    Args:
        widths: token width d of each tower.
        depths: number of blocks of each tower.
        bottleneck_dim: r.
        scale: s.
        generator: drives the Kaiming-normal initialisation (fan_out, relu); biases start at zero.
        shared: parts that are averaged over clients; the others stay with them.
        towers: those that are adapted; of one alone, no pair joins anything.
    """

    def __init__(
        self,
        widths: dict[Tower, int],
        depths: dict[Tower, int],
        bottleneck_dim: int,
        scale: float,
        generator: torch.Generator,
        *,
        shared: Collection[Part] = JUST_PROJECTIONS,
        towers: Sequence[Tower] = TOWERS,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.adapts = frozenset(towers)
        self._shared = frozenset(shared)
        pairs = pair_count(depths["image"], depths["text"])
        self.first = {tower: depths[tower] - pairs for tower in towers}
        for tower in towers:
            blocks = range(self.first[tower], depths[tower])
            layers = {str(b): _Bottleneck(widths[tower], bottleneck_dim) for b in blocks}
            self.add_module(tower, nn.ModuleDict(layers))
        joints = {str(p): nn.Linear(bottleneck_dim, bottleneck_dim) for p in range(pairs)}
        self.pair = nn.ModuleDict(joints)
        for name, value in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(value)
            else:
                nn.init.kaiming_normal_(
                    value, mode="fan_out", nonlinearity="relu", generator=generator
                )

    def first_block(self, backbone: Backbone, tower: Tower) -> int:
        """See `Adapter`."""
        return self.first[tower] if tower in self.adapts else backbone.depth(tower)

    def hook(self, tower: Tower, block: int, h: Tensor) -> Tensor | None:
        """What the adapter adds to the output of a block, h [B, T, d] -> [B, T, d] or None."""
        pair = block - self.first[tower] if tower in self.adapts else -1
        if pair < 0:
            return None
        bottleneck = self.get_submodule(f"{tower}.{block}")
        assert isinstance(bottleneck, _Bottleneck)
        z = F.relu(bottleneck.down(scale_gradient(h, self.scale)))
        z = F.relu(self.pair[str(pair)](z))
        return scale_output(bottleneck.up(z), self.scale)

    def scopes(self) -> dict[str, Scope]:
        """The scope of every parameter; by default projections are shared, all else is local."""
        return {
            f"{path}.{name}": Scope.SHARED if part in self._shared else Scope.LOCAL
            for path, part, layer in self._layers()
            for name, _ in layer.named_parameters()
        }

    def _layers(self) -> Iterator[tuple[str, Part, nn.Module]]:
        """Every layer with its path and what it is."""
        for tower in self.first:
            for block, bottleneck in self.get_submodule(tower).named_children():
                assert isinstance(bottleneck, _Bottleneck)
                yield f"{tower}.{block}.down", "down", bottleneck.down
                yield f"{tower}.{block}.up", "up", bottleneck.up
        for pair, layer in self.pair.named_children():
            yield f"pair.{pair}", "projection", layer


class _Bottleneck(nn.Module):
    """One block's own layers."""

    def __init__(self, width: int, bottleneck_dim: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck_dim)
        self.up = nn.Linear(bottleneck_dim, width)


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """x, whose gradient is scaled on its way back."""
    scaled: Tensor = _ScaleGradient.apply(x, scale)
    return scaled


def scale_output(x: Tensor, scale: float) -> Tensor:
    """scale * x, whose gradient is that of x itself."""
    scaled: Tensor = _ScaleOutput.apply(x, scale)
    return scaled


class _ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is scaled: restores the true gradient on the way to the trunk."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.scale, None


class _ScaleOutput(torch.autograd.Function):
    """Scaling whose gradient is the identity: adapter parameters learn as if the scale were 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        return x * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
