"""What every adapter is: a hook into the blocks of both towers, with scopes for its parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from pfedmma_deploy.types import Scope, Tower


class Adapter(nn.Module, ABC):
    """Trainable parameters beside a frozen backbone."""

    @abstractmethod
    def hook(self, tower: Tower, block: int, h: Tensor) -> Tensor | None:
        """What is added to the output of a block whose `ln_1` gave h [B, T, d], or None."""

    @abstractmethod
    def scopes(self) -> dict[str, Scope]:
        """The scope of every parameter by its name: each has exactly one."""

    def tensors(self, scope: Scope) -> dict[str, Tensor]:
        """Copies of the parameters of one scope, detached, by name."""
        scopes = self.scopes()
        return {
            name: value.detach().clone()
            for name, value in self.named_parameters()
            if scopes[name] is scope
        }

    def load(self, *parts: dict[str, Tensor]) -> None:
        """Set every parameter from the parts together.

        Raises:
            ValueError: a parameter is missing or given twice, unknown, or of another shape; the
                message names it.
        """
        merged: dict[str, Tensor] = {}
        for part in parts:
            twice = sorted(merged.keys() & part.keys())
            if twice:
                raise ValueError(f"parameter {twice[0]} is given twice")
            merged.update(part)
        own = dict(self.named_parameters())
        for name in sorted(own.keys() ^ merged.keys()):
            raise ValueError(
                f"parameter {name} is {'missing' if name in own else 'not of this adapter'}"
            )
        for name, value in own.items():
            if merged[name].shape != value.shape:
                raise ValueError(
                    f"parameter {name} has shape {tuple(merged[name].shape)}, "
                    f"expected {tuple(value.shape)}"
                )
            value.data.copy_(merged[name])
