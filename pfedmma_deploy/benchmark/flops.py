"""Floating-point operations of a ViT image tower, counted from its dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pfedmma_deploy.backbone.clip import Backbone

__all__ = ["ImageTower", "image_flop", "tower_of"]


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
    mixture; MLP) `+ 2 d D` (projection). Norms, activations, softmax and adapters are not counted:
    a share of the machine's peak is that of the work a plain CLIP needs.
    """
    patches = (tower.image_size // tower.patch_size) ** 2
    tokens, d = patches + 1, tower.width
    embedding = 2 * patches * 3 * tower.patch_size**2 * d
    block = 8 * tokens * d**2 + 4 * tokens**2 * d + 4 * tokens * d * tower.mlp_width
    return embedding + tower.depth * block + 2 * d * tower.embed_dim


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
