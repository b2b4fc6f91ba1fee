"""Low-rank changes of the attention projections of both towers.

LoRA (Hu et al., arXiv 2106.09685) on the rows of the fused query-key-value weight W [3 d, d] that
make the queries and the values:

    W_q' = W_q + (alpha / r) * B_q A_q        W_v' = W_v + (alpha / r) * B_v A_v        W_k' = W_k

with A [r, d] and B [d, r]. The product is added to the weight itself and not to the layer's output:
a model in training and the same model merged into plain weights are bit-identical.

Dropout, too, acts on the weight: it zeroes input features of A, for all tokens and images of a step
alike, and scales the others by 1 / (1 - p). In expectation that is LoRA's own dropout, which draws
a new mask for every token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma_deploy.adapters.base import Adapter, BankModule, ExportBanks
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.types import TOWERS, Scope, Tower


class LowRank(nn.Module):
    """One low-rank matrix B A: A is uniform as in the reference (Kaiming, a = sqrt 5), B is zero.

    Args:
        width: d.
        rank: r.
        generator: draws A.
    """

    def __init__(self, width: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, width))
        self.B = nn.Parameter(torch.zeros(width, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5), generator=generator)

    def product(self, dropout: float) -> Tensor:
        """B A [d, d]; in training with `dropout` of the columns of A."""
        kept = F.dropout(torch.ones_like(self.A[0]), dropout, self.training)
        return self.B @ (self.A * kept)


class LowRankBlock(nn.Module):
    """The low-rank matrices of one block."""

    def __init__(self, width: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.q = LowRank(width, rank, generator)
        self.v = LowRank(width, rank, generator)

    def change(self, weight: Tensor, scale: float, dropout: float) -> Tensor:
        """The fused weight [3 d, d] with the scaled products on its query and value rows."""
        q, k, v = weight.chunk(3)
        q = q + scale * self.q.product(dropout)
        v = v + scale * self.v.product(dropout)
        return torch.cat([q, k, v])


def tower_blocks(
    width: int, depth: int, rank: int, generator: torch.Generator
) -> Mapping[str, LowRankBlock]:
    """Low-rank matrices for every block of a tower, by block index."""
    return {str(block): LowRankBlock(width, rank, generator) for block in range(depth)}


def low_rank_banks(
    tower: Tower,
    block: int,
    pairs: Mapping[str, Sequence[tuple[Tensor, Tensor]]],
    scale: float,
) -> ExportBanks:
    """Low-rank changes of one block's queries and values as an exported graph takes them.

    Args:
        tower: the tower.
        block: index of the block in it.
        pairs: `q` and `v` -> pairs A [r, d], B [d, r], whose products are summed.
        scale: factor on the sum.
    """
    rows: dict[str, Tensor] = {}
    for name, factors in pairs.items():
        # A sum of products is one product of the factors side by side.
        rows[f"{name}_down"] = torch.cat([a.detach() for a, _ in factors]).T
        rows[f"{name}_up"] = torch.cat([b.detach() for _, b in factors], dim=1).T
    return ExportBanks(
        tower, f"blocks.{block}.low_rank", rows, build=partial(LowRankBanks, scale=scale)
    )


class LowRankBanks(BankModule):
    """What is added to the queries and the values of one block, a row of factors per client.

    Training adds the product of the factors to the weight; a graph that serves many clients at
    once adds the product with the tokens. Both are the same up to rounding.

    Args:
        banks: `q_down` and `v_down` [clients + 1, d, r], `q_up` and `v_up` [clients + 1, r, d].
        scale: factor on the products, kept apart from them for half precision.
    """

    def __init__(self, banks: Mapping[str, Tensor], scale: float) -> None:
        super().__init__(banks)
        self.scale = scale

    def queries(self, h: Tensor, client: Tensor, strength: Tensor) -> Tensor:
        """h [B, T, d], client [B], strength [B, 1, 1] -> [B, T, d]."""
        return self._added("q", h, client, strength)

    def values(self, h: Tensor, client: Tensor, strength: Tensor) -> Tensor:
        """h [B, T, d], client [B], strength [B, 1, 1] -> [B, T, d]."""
        return self._added("v", h, client, strength)

    def _added(self, which: str, h: Tensor, client: Tensor, strength: Tensor) -> Tensor:
        inner = h @ self.rows(f"{which}_down", client)
        return inner @ self.rows(f"{which}_up", client) * (strength * self.scale)


class LoRA(Adapter):
    """LoRA on queries and values of every block of both towers.

    Parameters are named `{tower}.{block}.{q,v}.A` [r, d] and `.B` [d, r].

    Args:
        widths: token width d of each tower.
        depths: number of blocks of each tower.
        rank: r.
        alpha: the products are scaled by alpha / r.
        dropout: p.
        generator: draws A.
        scope_a, scope_b: who holds all A, and all B.
    """

    def __init__(
        self,
        widths: Mapping[Tower, int],
        depths: Mapping[Tower, int],
        rank: int,
        alpha: float,
        dropout: float,
        generator: torch.Generator,
        *,
        scope_a: Scope,
        scope_b: Scope,
    ) -> None:
        super().__init__()
        self.rank = rank
        self.scale = alpha / rank
        self.dropout = dropout
        self._scope_of = (("A", scope_a), ("B", scope_b))
        for tower in TOWERS:
            blocks = tower_blocks(widths[tower], depths[tower], rank, generator)
            self.add_module(tower, nn.ModuleDict(blocks))
        self._start = {name: lora.A.detach().clone() for name, lora in self._products()}
        self.eval()  # dropout is for fitting only

    def attention(self, tower: Tower, block: int, weight: Tensor) -> Tensor:
        """The block's fused weight [3 d, d] with its low-rank changes."""
        lora = self.get_submodule(f"{tower}.{block}")
        assert isinstance(lora, LowRankBlock)
        return lora.change(weight, self.scale, self.dropout)

    def export_banks(self, backbone: Backbone) -> list[ExportBanks]:
        """The low-rank changes of every block."""
        found = []
        for tower in TOWERS:
            for block in range(backbone.depth(tower)):
                lora = self.get_submodule(f"{tower}.{block}")
                assert isinstance(lora, LowRankBlock)
                pairs = {"q": [(lora.q.A, lora.q.B)], "v": [(lora.v.A, lora.v.B)]}
                found.append(low_rank_banks(tower, block, pairs, self.scale))
        return found

    def export_settings(self) -> dict[str, Any]:
        """Rank and scale."""
        return {"kind": "low-rank", "rank": self.rank, "scale": self.scale}

    def scopes(self) -> dict[str, Scope]:
        """All A have one scope and all B have one."""
        names = [name for name, _ in self._products()]
        return {f"{name}.{factor}": scope for name in names for factor, scope in self._scope_of}

    @torch.no_grad()
    def drift(self) -> float:
        """How far the A have moved from their common start, as a fraction of its norm."""
        moved = start = 0.0
        for name, lora in self._products():
            first = self._start[name].to(lora.A.device)
            moved += float((lora.A - first).double().square().sum())
            start += float(first.double().square().sum())
        return math.sqrt(moved / start)

    def _products(self) -> Iterator[tuple[str, LowRank]]:
        """Every low-rank matrix with its path."""
        for name, module in self.named_modules():
            if isinstance(module, LowRank):
                yield name, module
