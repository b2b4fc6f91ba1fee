"""One block of a tower written for export, with what all clients have in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pfedmma_deploy.adapters.graph_form import below
from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.export.clients import AdapterBanks
from pfedmma_deploy.export.lora_banks import LowRankBanks

if TYPE_CHECKING:
    from open_clip.transformer import ResidualAttentionBlock

__all__ = ["adaptable_blocks", "is_quick_gelu"]


class _Block(nn.Module):
    """One frozen pre-norm block, and what clients have beside it and in its attention.

    With `only_first` its output is that of the first token alone, [B, 1, d]. All that is left to
    do for the others are their keys and values: a sixth of the block.
    """

    def __init__(
        self,
        source: ResidualAttentionBlock,
        banks: AdapterBanks | None,
        low_rank: Mapping[str, Tensor],
        scale: float,
        *,
        only_first: bool,
    ) -> None:
        super().__init__()
        self.only_first = only_first
        attention = source.attn
        self.heads = int(attention.num_heads)
        self.ln_1, self.ln_2 = source.ln_1, source.ln_2
        weights = attention.in_proj_weight.detach().chunk(3)
        biases = attention.in_proj_bias.detach().chunk(3)
        self.q, self.k, self.v = map(_linear, weights, biases)
        self.out = _scaled(attention.out_proj, source.ls_1)
        self.up, self.down = source.mlp.c_fc, _scaled(source.mlp.c_proj, source.ls_2)
        self.quick_gelu = is_quick_gelu(source.mlp.gelu)
        self.adapter = None if banks is None else AdapterBank(banks, scale)
        self.low_rank = LowRankBanks(low_rank, scale) if low_rank else None

    def forward(self, x: Tensor, client: Tensor, mask: Tensor | None) -> Tensor:
        everywhere = h = self.ln_1(x)
        if self.only_first:
            x, h = x[:, :1], h[:, :1]
        x = x + self.attend(h, everywhere, client, mask)
        z = self.up(self.ln_2(x))
        z = z * torch.sigmoid(1.702 * z) if self.quick_gelu else _gelu(z)
        x = x + self.down(z)
        return x if self.adapter is None else x + self.adapter(h, client)

    def attend(self, h: Tensor, everywhere: Tensor, client: Tensor, mask: Tensor | None) -> Tensor:
        """What the tokens h [B, T', d] take from all tokens [B, T, d]."""
        batch, length, width = h.shape
        split = (self.heads, width // self.heads)
        q, v = self.q(h), self.v(everywhere)
        if self.low_rank is not None:
            q = q + self.low_rank.queries(h, client)
            v = v + self.low_rank.values(everywhere, client)
        q = q.unflatten(-1, split).permute(0, 2, 1, 3)
        k = self.k(everywhere).unflatten(-1, split).permute(0, 2, 3, 1)
        v = v.unflatten(-1, split).permute(0, 2, 1, 3)
        scores = (q @ k) * (width // self.heads) ** -0.5
        if mask is not None:
            scores = scores + mask
        mixed = (scores.softmax(dim=-1) @ v).permute(0, 2, 1, 3)
        out: Tensor = self.out(mixed.reshape(batch, length, width))
        return out


class AdapterBank(nn.Module):
    """pFedMMA's adapter (arXiv 2507.05394) with one row of weights per client, gathered per item.

    The scale stays apart from the weights: multiplied into them it would push them below what
    half precision can hold.
    """

    def __init__(self, banks: AdapterBanks, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.down_weight = nn.Buffer(banks.down_weight)
        self.down_bias = nn.Buffer(banks.down_bias)
        self.pair_weight = nn.Buffer(banks.pair_weight)
        self.pair_bias = nn.Buffer(banks.pair_bias)
        self.up_weight = nn.Buffer(banks.up_weight)
        self.up_bias = nn.Buffer(banks.up_bias)

    def forward(self, h: Tensor, client: Tensor) -> Tensor:
        def of(bank: Tensor) -> Tensor:
            # index_select becomes one Gather on the named initializer.
            return bank.index_select(0, client)

        z = (h @ of(self.down_weight) + of(self.down_bias)).relu()
        z = (z @ of(self.pair_weight) + of(self.pair_bias)).relu()
        return (z @ of(self.up_weight) + of(self.up_bias)) * self.scale


def is_quick_gelu(activation: nn.Module) -> bool:
    """Whether a block uses QuickGELU.

    Raises:
        ExportError: it uses neither QuickGELU nor the exact GELU.
    """
    name = type(activation).__name__
    if name == "QuickGELU":
        return True
    if isinstance(activation, nn.GELU) and activation.approximate == "none":
        return False
    raise ExportError(f"The activation {activation!r} cannot be exported: GELU and QuickGELU can.")


def adaptable_blocks(
    sources: Sequence[ResidualAttentionBlock],
    banks: Mapping[int, AdapterBanks],
    scale: float,
    parts: Mapping[str, Tensor],
    *,
    last_reads_first: bool = False,
) -> nn.ModuleList:
    """The blocks of a tower; with `last_reads_first` only the first token leaves the last one."""
    last = len(sources) - 1 if last_reads_first else None
    return nn.ModuleList(
        _Block(
            source,
            banks.get(index),
            below(parts, f"blocks.{index}.low_rank."),
            scale,
            only_first=index == last,
        )
        for index, source in enumerate(sources)
    )


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    layer.bias = nn.Parameter(bias.contiguous(), requires_grad=False)
    return layer


def _scaled(layer: nn.Linear, scale: nn.Module) -> nn.Linear:
    """The layer with open_clip's LayerScale behind it, where there is one, as one layer."""
    gamma = getattr(scale, "gamma", None)
    if gamma is None:
        return layer
    gamma = gamma.detach()
    return _linear(layer.weight.detach() * gamma[:, None], layer.bias.detach() * gamma)


def _gelu(x: Tensor) -> Tensor:
    """The exact GELU in operators of any opset, in the order that ONNX Runtime fuses at loading."""
    return x * 0.5 * (torch.erf(x / math.sqrt(2)) + 1)
