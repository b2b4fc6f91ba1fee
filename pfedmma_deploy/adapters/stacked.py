"""The multi-modal adapters of several clients side by side, for one pass over all of them.

The same equation as `adapters.mma`, every weight with the clients in front: [K, ...]. What comes
from the frozen block, h [K * N, T, d], holds the N items of the first client, then of the second.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma_deploy.adapters.mma import MultiModalAdapter, scale_gradient, scale_output
from pfedmma_deploy.types import Tower

Tensors = dict[str, Tensor]


class StackedAdapter:
    """K adapters of one kind; `values` are leaves [K, ...] that receive gradients.

    Args:
        adapter: says which blocks are adapted and how strongly.
        states: all tensors of each client by name.
    """

    def __init__(self, adapter: MultiModalAdapter, states: Sequence[Tensors]) -> None:
        self.adapter = adapter
        device = next(adapter.parameters()).device
        self.values = {
            name: torch.stack([state[name] for state in states]).to(device).requires_grad_()
            for name in states[0]
        }

    def state(self, row: int) -> Tensors:
        """The tensors of one client, detached."""
        return {name: value[row].detach().clone() for name, value in self.values.items()}

    def rows(self, chosen: Sequence[int]) -> StackedHook:
        """The hook for a pass over some of the clients, in this order."""
        whole = list(chosen) == list(range(len(next(iter(self.values.values())))))
        index = torch.tensor(list(chosen))
        return StackedHook(
            self.adapter,
            {
                name: value if whole else value.index_select(0, index.to(value.device))
                for name, value in self.values.items()
            },
            len(chosen),
        )


class StackedHook:
    """A `BlockHook` over K clients at once."""

    def __init__(self, adapter: MultiModalAdapter, values: Tensors, clients: int) -> None:
        self.adapter, self.values, self.clients = adapter, values, clients

    def __call__(self, tower: Tower, block: int, h: Tensor) -> Tensor | None:
        """What is added to a block's output, h [K * N, T, d] -> the same shape, or None."""
        adapter = self.adapter
        pair = block - adapter.first[tower] if tower in adapter.adapts else -1
        if pair < 0:
            return None
        x = scale_gradient(h, adapter.scale).reshape(self.clients, -1, h.shape[-1])
        z = F.relu(self._linear(f"{tower}.{block}.down", x))
        z = F.relu(self._linear(f"pair.{pair}", z))
        return scale_output(self._linear(f"{tower}.{block}.up", z), adapter.scale).reshape(h.shape)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        """x [K, M, in] -> [K, M, out], each client with its own weight."""
        weight, bias = self.values[f"{name}.weight"], self.values[f"{name}.bias"]
        return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
