"""Low-rank changes of queries and values (LoRA, arXiv 2106.09685), one row of factors per client.

Training adds the product of the factors to the weight; a graph that serves many clients at once
adds what the product makes of the tokens. Both are the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

__all__ = ["LowRankBanks"]


class LowRankBanks(nn.Module):
    """What is added to the queries and the values of one block.

    Args:
        banks: `q_down` and `v_down` [clients + 1, d, r], `q_up` and `v_up` [clients + 1, r, d].
        scale: factor on the products, kept apart from them for half precision.
    """

    def __init__(self, banks: Mapping[str, Tensor], scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.q_down, self.q_up = nn.Buffer(banks["q_down"]), nn.Buffer(banks["q_up"])
        self.v_down, self.v_up = nn.Buffer(banks["v_down"]), nn.Buffer(banks["v_up"])

    def queries(self, h: Tensor, client: Tensor) -> Tensor:
        """h [B, T, d] -> [B, T, d]."""
        inner = h @ self.q_down.index_select(0, client)
        return inner @ self.q_up.index_select(0, client) * self.scale

    def values(self, h: Tensor, client: Tensor) -> Tensor:
        """h [B, T, d] -> [B, T, d]."""
        inner = h @ self.v_down.index_select(0, client)
        return inner @ self.v_up.index_select(0, client) * self.scale
