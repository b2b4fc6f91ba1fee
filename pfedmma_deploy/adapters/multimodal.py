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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma_deploy.adapters.base import Adapter, Array, BankModule, ExportBanks
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.types import TOWERS, Scope, Tower

Layer = Literal["projection", "down", "up"]
LAYERS: tuple[Layer, ...] = get_args(Layer)
JUST_PROJECTIONS: tuple[Layer, ...] = ("projection",)


def bottleneck(h: Tensor, linear: Callable[[Layer, Tensor], Tensor], scale: float) -> Tensor:
    """The adapter's equation as it trains, h [..., T, d] -> [..., T, d].

    Args:
        h: output of the block's `ln_1`.
        linear: applies one of the three layers, bias included.
        scale: s.
    """
    return scale_output(unscaled_bottleneck(scale_gradient(h, scale), linear), scale)


def unscaled_bottleneck(h: Tensor, linear: Callable[[Layer, Tensor], Tensor]) -> Tensor:
    """The equation without s: training and exported graphs differ only in where weights are."""
    z = F.relu(linear("down", h))
    z = F.relu(linear("projection", z))
    return linear("up", z)


def bottleneck_reference(rows: Mapping[str, Array], h: Array, scale: float) -> Array:
    """The same equation in numpy, float64; `rows` are those of `MultiModalAdapter.export_banks`."""
    z = np.maximum(h @ rows["down_weight"] + rows["down_bias"], 0)
    z = np.maximum(z @ rows["pair_weight"] + rows["pair_bias"], 0)
    added: Array = scale * (z @ rows["up_weight"] + rows["up_bias"])
    return added


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
        shared: layers that are averaged over clients; the others stay with them.
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
        shared: Collection[Layer] = JUST_PROJECTIONS,
        towers: Sequence[Tower] = TOWERS,
    ) -> None:
        super().__init__()
        self.bottleneck_dim = bottleneck_dim
        self.scale = scale
        self.adapts = frozenset(towers)
        self._shared = frozenset(shared)
        pairs = pair_count(depths["image"], depths["text"])
        self.first = {tower: depths[tower] - pairs for tower in towers}
        for tower in towers:
            blocks = range(self.first[tower], depths[tower])
            layers = {str(b): _BlockLayers(widths[tower], bottleneck_dim) for b in blocks}
            self.add_module(tower, nn.ModuleDict(layers))
        projections = {str(p): nn.Linear(bottleneck_dim, bottleneck_dim) for p in range(pairs)}
        self.pair = nn.ModuleDict(projections)
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
        if tower not in self.adapts or block < self.first[tower]:
            return None
        layers = self._layers_of(tower, block)
        return bottleneck(h, lambda layer, x: layers[layer](x), self.scale)

    def export_banks(self, backbone: Backbone) -> list[ExportBanks]:
        """Every adapted block, weights as `h @ weight` takes them."""
        found = []
        for tower in self.first:
            for block in self._blocks(tower):
                rows = {}
                for layer, linear in self._layers_of(tower, block).items():
                    # Bundles call the projection of a pair of blocks "pair".
                    name = "pair" if layer == "projection" else layer
                    weight, bias = linear.weight.detach(), linear.bias.detach()
                    rows[f"{name}_weight"] = weight.T
                    # One more dimension, so that a batch of rows broadcasts over the tokens.
                    rows[f"{name}_bias"] = bias.unsqueeze(0)
                found.append(
                    ExportBanks(
                        tower,
                        f"blocks.{block}.adapter",
                        rows,
                        build=partial(BottleneckBanks, scale=self.scale),
                        reference=partial(bottleneck_reference, scale=self.scale),
                    )
                )
        return found

    def export_settings(self) -> dict[str, Any]:
        """Rank, scale and adapted blocks."""
        return {
            "kind": "multimodal",
            "bottleneck_dim": self.bottleneck_dim,
            "scale": self.scale,
            "blocks": {
                tower: self._blocks(tower) if tower in self.first else [] for tower in TOWERS
            },
        }

    def scopes(self) -> dict[str, Scope]:
        """The scope of every parameter; by default projections are shared, all else is local."""
        return {
            f"{path}.{name}": Scope.SHARED if layer in self._shared else Scope.LOCAL
            for path, layer in self._paths()
            for name in ("weight", "bias")
        }

    def _paths(self) -> Iterator[tuple[str, Layer]]:
        """Where every layer is, and which of the three it is."""
        for tower in self.first:
            for block in self._blocks(tower):
                yield f"{tower}.{block}.down", "down"
                yield f"{tower}.{block}.up", "up"
        for pair, _ in self.pair.named_children():
            yield f"pair.{pair}", "projection"

    def _blocks(self, tower: Tower) -> list[int]:
        """The adapted blocks of an adapted tower."""
        return [int(block) for block, _ in self.get_submodule(tower).named_children()]

    def _layers_of(self, tower: Tower, block: int) -> dict[Layer, nn.Linear]:
        """The three layers of one block, the projection shared with the other tower's block."""
        own = self.get_submodule(f"{tower}.{block}")
        assert isinstance(own, _BlockLayers)
        projection = self.pair[str(block - self.first[tower])]
        assert isinstance(projection, nn.Linear)
        return {"down": own.down, "projection": projection, "up": own.up}


class _BlockLayers(nn.Module):
    """One block's own layers."""

    def __init__(self, width: int, bottleneck_dim: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck_dim)
        self.up = nn.Linear(bottleneck_dim, width)


class BottleneckBanks(BankModule):
    """The adapter of one block with a row of weights per client, gathered per item.

    The scale stays apart from the weights: multiplied into them it would push them below what
    half precision can hold.
    """

    def __init__(self, banks: Mapping[str, Tensor], scale: float) -> None:
        super().__init__(banks)
        self.scale = scale

    def forward(self, h: Tensor, client: Tensor, strength: Tensor) -> Tensor:
        """h [B, T, d], client [B], strength [B, 1, 1] -> what is added, [B, T, d]."""

        def linear(layer: Layer, x: Tensor) -> Tensor:
            name = "pair" if layer == "projection" else layer
            return x @ self.rows(f"{name}_weight", client) + self.rows(f"{name}_bias", client)

        # Both factors first, which are one number per item: the tokens are multiplied once.
        return unscaled_bottleneck(h, linear) * (strength * self.scale)


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

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.scale = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.scale, None


class _ScaleOutput(torch.autograd.Function):
    """Scaling whose gradient is the identity: adapter parameters learn as if the scale were 1."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: float) -> Tensor:
        return x * scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
