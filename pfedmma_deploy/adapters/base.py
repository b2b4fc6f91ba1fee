"""What every adapter is: trainable parameters around a frozen backbone, each with one scope."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma_deploy.backbone.clip import Backbone, ClassTexts, Images
from pfedmma_deploy.types import TOWERS, Mixing, Scope, Tower

Array = NDArray[np.float64]


class Adapter(nn.Module, ABC):
    """Trainable parameters around a frozen backbone, and what both towers compute with them.

    Most adapters only add to the output of blocks and implement `hook`, or only change the weight
    of its attention: `attention`; those merge exactly into plain CLIP. Others replace how an image
    or a text is encoded, or how both are compared: `encode_image`, `encode_text`, `logits`.
    """

    adapts: frozenset[Tower] = frozenset(TOWERS)
    """Towers whose features differ from the frozen backbone's."""
    task: str = "classify"
    """The task to encode for, where the adapter has several."""
    reads_names_together: bool = False
    """Whether the feature of a class name depends on the others that it is encoded with."""
    strength: float = 1.0
    """How much of what the adapter changes counts; see `at`."""
    interpolation: ClassVar[Mixing] = "exact"
    """How `strength` acts; see `at`."""

    def at(self, strength: float) -> Self:
        """The same adapter at another strength, on the same parameters.

        What is added to the output of blocks is multiplied by it, and so is the change of an
        attention weight. Adapters that encode in a way of their own mix features instead, or leave
        it to whoever asks for scores (`Scorer`) to mix those, and say so (`interpolation`).

        Args:
            strength: 0 is zero-shot CLIP, 1 the trained client; in between and beyond, both ways.
        """
        other = copy.copy(self)
        other.strength = strength
        return other

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks in which a client's model differs."""
        return ("classify",)

    def hook(self, tower: Tower, block: int, h: Tensor) -> Tensor | None:
        """What is added to the output of a block whose `ln_1` gave h [B, T, d], or None."""
        return None

    def attention(self, tower: Tower, block: int, weight: Tensor) -> Tensor:
        """What takes the place of a block's fused query-key-value weight [3 d, d]."""
        return weight

    def first_block(self, backbone: Backbone, tower: Tower) -> int:
        """The first block that this adapter takes part in; the tower's depth where it does in none.

        The input of that block is the frozen backbone's own and need not be computed twice: an
        adapter that names a block above 0 is given the `Activations` up to there.
        """
        return 0 if tower in self.adapts else backbone.depth(tower)

    def encode_image(self, backbone: Backbone, images: Images) -> Tensor:
        """Features of uint8 pixels [B, H, W, 3], the batch first: [B, D], L2-normalised."""
        return backbone.encode_image(images, self.scaled_hook, attention=self.scaled_attention)

    def encode_text(self, backbone: Backbone, texts: ClassTexts) -> Tensor:
        """Features of class names, [C, D], L2-normalised."""
        return backbone.encode_text(
            texts.prompts, self.scaled_hook, texts.activations, attention=self.scaled_attention
        )

    def scaled_hook(self, tower: Tower, block: int, h: Tensor) -> Tensor | None:
        """What `hook` adds, times the strength."""
        added = self.hook(tower, block, h)
        return added if added is None or self.strength == 1 else self.strength * added

    def scaled_attention(self, tower: Tower, block: int, weight: Tensor) -> Tensor:
        """The weight [3 d, d] with the change that `attention` makes, times the strength."""
        changed = self.attention(tower, block, weight)
        # At strength 1 bit-identical to the trained weight, which merging promises.
        return changed if self.strength == 1 else weight + self.strength * (changed - weight)

    def logits(self, images: Tensor, texts: Tensor, logit_scale: float) -> Tensor:
        """Class scores [B, C] of what `encode_image` and `encode_text` gave."""
        return logit_scale * images @ texts.T

    @abstractmethod
    def scopes(self) -> dict[str, Scope]:
        """The scope of every parameter by its name: each has exactly one.

        Shared ones travel; local ones stay with the client; frozen ones are never trained: the
        client keeps them with the local ones, unless the server sends them.
        """

    def export_banks(self, backbone: Backbone) -> Sequence[ExportBanks]:
        """What an exported graph takes of this client's trained adapter; see `ExportBanks`."""
        return ()

    def export_settings(self) -> dict[str, Any]:
        """What the clients of a bundle have in common, for its manifest: `kind` and numbers."""
        return {}

    def tensors(self, *scopes: Scope) -> dict[str, Tensor]:
        """Copies of the parameters of some scopes, detached, by name; all scopes if none given."""
        scope_of = self.scopes()
        return {
            name: value.detach().clone()
            for name, value in self.named_parameters()
            if not scopes or scope_of[name] in scopes
        }

    def load(self, *groups: Mapping[str, Tensor]) -> None:
        """Set every parameter from the groups together.

        Raises:
            ValueError: a parameter is missing or given twice, unknown, or of another shape; the
                message names it.
        """
        merged: dict[str, Tensor] = {}
        for group in groups:
            twice = sorted(merged.keys() & group.keys())
            if twice:
                raise ValueError(f"parameter {twice[0]} is given twice")
            merged.update(group)
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


KEPT = (Scope.LOCAL, Scope.FROZEN)
"""What a client keeps for itself."""


def mix_features(plain: Tensor, own: Tensor, strength: float) -> Tensor:
    """L2-normalised features [..., D] `strength` of the way from zero-shot's to the client's."""
    return F.normalize(torch.lerp(plain, own, strength), dim=-1)


class Frozen(Adapter):
    """No adapter at all: zero-shot CLIP. It adds nothing and has no parameters."""

    adapts: frozenset[Tower] = frozenset()

    def scopes(self) -> dict[str, Scope]:
        """Nothing to name."""
        return {}


@dataclass(frozen=True)
class ExportBanks:
    """Tensors of one client in one place of an exported graph, and the module that reads them.

    The graph holds one bank per tensor: an initializer `{place}.{name}` [clients + 1, ...] with a
    row for each client, row 0 (zero-shot) all zeros. `build` makes the module from the banks, as
    buffers of their names; it picks the rows of the items' clients by `index_select`. Where the
    module takes a `strength` [B, 1, 1], what it adds is multiplied by it; what `context` and `head`
    change is mixed with zero-shot's feature outside.
    """

    tower: Tower
    place: str
    """`blocks.{b}.adapter`: module(h [B, T, d], client, strength) is added to the block's output.
    `blocks.{b}.low_rank`: its `queries` and `values` (h, client, strength) are added to those of
    attention.
    `context`: module(x, input_ids, client) changes the token embeddings x [N, T, d].
    `frame`: module(x, client, strength) changes the normalised pixels x [B, 3, S, S].
    `head`: module(f, client) changes the projected feature f [B, D]."""
    rows: Mapping[str, Tensor]
    """One client's row of each bank, fp32, laid out as the module takes it."""
    build: Callable[[Mapping[str, Tensor]], nn.Module]
    reference: Callable[[Mapping[str, Array], Array], Array] | None = None
    """The module once more in numpy: (rows, h) -> its output, both float64. An independent check
    of a client that is added to a finished graph; None where reading its rows back is enough."""


class BankModule(nn.Module):
    """Buffers of the banks' names, and the rows of the items' clients in them.

    Args:
        banks: [clients + 1, ...] each.
    """

    def __init__(self, banks: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, value in banks.items():
            self.register_buffer(name, value)

    def rows(self, name: str, client: Tensor) -> Tensor:
        """Rows of a bank for client [B]: [B, ...]. One Gather on the named initializer."""
        return self.get_buffer(name).index_select(0, client)


def new_linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer started as torch starts one, uniform within 1/sqrt(inputs)."""
    layer = nn.Linear(inputs, outputs)
    bound = 1 / math.sqrt(inputs)
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return layer
