"""Floating-point operations of a ViT image tower, counted from its dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pfedmma_deploy.backbone.clip import Backbone

__all__ = ["ImageTower", "exported_flop", "image_flop", "tower_of"]


@dataclass(frozen=True, slots=True)
class ImageTower:
    """Dimensions of an image tower."""

    image_size: int
    patch_size: int
    width: int
    """d"""
    depth: int
    """L"""
    mlp_width: int
    """m"""
    embed_dim: int
    """D"""


def image_flop(tower: ImageTower) -> int:
    """Operations per image of the frozen tower, two for a multiplication and its addition.

    With n patches of p x p pixels and T = n + 1 tokens:
    `2 n 3 p^2 d` (patches) `+ L (8 T d^2 + 4 T^2 d + 4 T d m)` (q, k, v and out; scores and their
    mixture; MLP) `+ 2 d D` (projection). Norms, activations and softmax are not counted.
    """
    patches = (tower.image_size // tower.patch_size) ** 2
    tokens, d = patches + 1, tower.width
    embedding = 2 * patches * 3 * tower.patch_size**2 * d
    return embedding + tower.depth * _block(tower, tokens, tokens) + 2 * d * tower.embed_dim


def exported_flop(tower: ImageTower) -> int:
    """The same for the exported graph, whose last block answers for the class token alone.

    Keys and values of all T tokens, everything else of one: `4 T d^2 + 4 d^2 + 4 T d + 4 d m`
    instead of the block above. Adapters are not counted: they are what personalization adds.
    """
    tokens = (tower.image_size // tower.patch_size) ** 2 + 1
    saved = _block(tower, tokens, tokens) - _block(tower, tokens, 1)
    return image_flop(tower) - saved


def _block(tower: ImageTower, tokens: int, asking: int) -> int:
    """One block in which `asking` of its `tokens` are computed to the end."""
    d = tower.width
    keys_and_values, queries_and_out = 4 * tokens * d**2, 4 * asking * d**2
    attention, mlp = 4 * asking * tokens * d, 4 * asking * d * tower.mlp_width
    return keys_and_values + queries_and_out + attention + mlp


def tower_of(backbone: Backbone) -> ImageTower:
    """The dimensions of a backbone's image tower."""
    first = backbone.blocks("image")[0]
    return ImageTower(
        image_size=backbone.image_size,
        patch_size=int(backbone.visual.conv1.kernel_size[0]),
        width=backbone.width("image"),
        depth=backbone.depth("image"),
        mlp_width=int(first.mlp.c_fc.out_features),
        embed_dim=backbone.embed_dim,
    )
