"""What clients do to pixels and to the image feature, one row of weights per client.

The frame of pFedPT (arXiv 2303.08678), the gate of FedCLIP (arXiv 2302.13485) and the bottleneck of
CLIP-Adapter (arXiv 2110.04544). Client 0 has none of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["BottleneckHead", "FrameBank", "GateHead", "feature_head"]


class FrameBank(nn.Module):
    """Adds a client's picture to the normalised pixels.

    Args:
        pixels: [clients + 1, 3, S, S]; that of client 0 is zero.
    """

    def __init__(self, pixels: Tensor) -> None:
        super().__init__()
        self.pixels = nn.Buffer(pixels)

    def forward(self, x: Tensor, client: Tensor) -> Tensor:
        """x [B, 3, S, S] -> the same shape."""
        return x + self.pixels.index_select(0, client)


class GateHead(nn.Module):
    """f * softmax(L2 tanh(L1 f)) of features not yet normalised.

    Args:
        banks: `first_weight` [clients + 1, D, D] as `f @ weight` takes it, `first_bias`
            [clients + 1, D], and the same under `second`.
    """

    def __init__(self, banks: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.first_weight = nn.Buffer(banks["first_weight"])
        self.first_bias = nn.Buffer(banks["first_bias"])
        self.second_weight = nn.Buffer(banks["second_weight"])
        self.second_bias = nn.Buffer(banks["second_bias"])

    def forward(self, f: Tensor, client: Tensor) -> Tensor:
        """f [B, D] -> [B, D]."""
        inner = _product(f, self.first_weight, client) + self.first_bias.index_select(0, client)
        gate = _product(inner.tanh(), self.second_weight, client)
        gate = gate + self.second_bias.index_select(0, client)
        return _of_clients(f * gate.softmax(dim=-1), f, client)


class BottleneckHead(nn.Module):
    """ratio relu(W2 relu(W1 f)) + (1 - ratio) f of features not yet normalised.

    Args:
        banks: `down_weight` [clients + 1, D, r] and `up_weight` [clients + 1, r, D] as
            `f @ weight` takes them, `ratio` [clients + 1, 1].
    """

    def __init__(self, banks: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.down_weight = nn.Buffer(banks["down_weight"])
        self.up_weight = nn.Buffer(banks["up_weight"])
        self.ratio = nn.Buffer(banks["ratio"])

    def forward(self, f: Tensor, client: Tensor) -> Tensor:
        """f [B, D] -> [B, D]."""
        inner = _product(f, self.down_weight, client).relu()
        inner = _product(inner, self.up_weight, client).relu()
        mixed = f + self.ratio.index_select(0, client) * (inner - f)
        return _of_clients(mixed, f, client)


def feature_head(banks: Mapping[str, Tensor]) -> nn.Module | None:
    """The head that these banks are of; None where there are none."""
    if not banks:
        return None
    return GateHead(banks) if "first_weight" in banks else BottleneckHead(banks)


def _product(f: Tensor, weight: Tensor, client: Tensor) -> Tensor:
    """[B, in] times each client's own [in, out]: [B, out]."""
    return (f.unsqueeze(1) @ weight.index_select(0, client)).squeeze(1)


def _of_clients(changed: Tensor, f: Tensor, client: Tensor) -> Tensor:
    """Client 0 keeps the feature as it is, to the bit."""
    return torch.where((client > 0).unsqueeze(-1), changed, f)
