"""What every adapter is: trainable parameters around a frozen backbone, each with one scope."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from pfedmma_deploy.backbone.clip import Backbone, Images
from pfedmma_deploy.backbone.texts import ClassTexts
from pfedmma_deploy.types import TOWERS, Scope, Tower


class Adapter(nn.Module, ABC):
    """Trainable parameters around a frozen backbone, and what both towers compute with them.

    Most adapters only add to the output of blocks and implement `hook`, or only change the weight
    of its attention: `attention`; those fold exactly into plain CLIP. Others replace how an image
    or a text is encoded, or how both are compared: `encode_image`, `encode_text`, `logits`.
    """

    adapts: frozenset[Tower] = frozenset(TOWERS)
    """Towers whose features differ from the frozen backbone's."""
    task: str = "classify"
    """What it is asked to encode for, where it knows more than one task."""

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

        What that block reads is the frozen backbone's own and need not be computed twice: an
        adapter that names a block above 0 is given the `Prefix` up to there.
        """
        return 0 if tower in self.adapts else backbone.depth(tower)

    def encode_image(self, backbone: Backbone, images: Images) -> Tensor:
        """Features of uint8 pixels [B, H, W, 3], the batch first: [B, D], L2-normalised."""
        return backbone.encode_image(images, self.hook, attention=self.attention)

    def encode_text(self, backbone: Backbone, texts: ClassTexts) -> Tensor:
        """Features of class names, [C, D], L2-normalised."""
        return backbone.encode_text(
            texts.prompts, self.hook, texts.prefix, attention=self.attention
        )

    def logits(self, images: Tensor, texts: Tensor, logit_scale: float) -> Tensor:
        """Class scores [B, C] of what `encode_image` and `encode_text` gave."""
        return logit_scale * images @ texts.T

    @abstractmethod
    def scopes(self) -> dict[str, Scope]:
        """The scope of every parameter by its name: each has exactly one.

        Shared ones travel; local ones stay with the client; frozen ones are never trained: the
        client keeps them with the local ones, unless the server sends them.
        """

    def tensors(self, *scopes: Scope) -> dict[str, Tensor]:
        """Copies of the parameters of some scopes, detached, by name."""
        scope_of = self.scopes()
        return {
            name: value.detach().clone()
            for name, value in self.named_parameters()
            if scope_of[name] in scopes
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


KEPT = (Scope.LOCAL, Scope.FROZEN)
"""What a client keeps for itself."""
