"""Floating-point operations of the frozen towers, counted from their dimensions.

Two for a multiplication and its addition. Norms, activations, softmax and adapters are not counted:
together they are a few percent, and a share of the machine's peak is that of its matmuls.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.types import Tower


@dataclass(frozen=True)
class Pass:
    """What one item costs in one tower."""

    forward: int
    backward: int
    """Gradient of the tokens; the frozen weights have none."""

    @property
    def total(self) -> int:
        """Both."""
        return self.forward + self.backward


def block_flop(tokens: int, width: int, mlp_width: int, queries: int | None = None) -> int:
    """Forward operations of one block.

    All tokens: `8 T d^2 + 4 T^2 d + 4 T d m` (queries, keys, values and output; scores and mixture;
    MLP). Of `queries` tokens alone: `4 T d^2 + A (4 d^2 + 4 T d + 4 d m)`.
    """
    t, d, m = tokens, width, mlp_width
    if queries is None:
        return 8 * t * d**2 + 4 * t**2 * d + 4 * t * d * m
    return 4 * t * d**2 + queries * (4 * d**2 + 4 * t * d + 4 * d * m)


def backward_flop(tokens: int, width: int, mlp_width: int, queries: int | None = None) -> int:
    """Operations of a block's gradient with respect to its tokens.

    As many as forward, and the attention's two products twice over: each has two factors.
    """
    attention = 4 * tokens**2 * width if queries is None else 4 * queries * tokens * width
    return block_flop(tokens, width, mlp_width, queries) + attention


def embedding_flop(backbone: Backbone) -> int:
    """Of an image's patches: `2 n 3 p^2 d`."""
    patch = int(backbone.visual.conv1.kernel_size[0])
    patches = (backbone.image_size // patch) ** 2
    return 2 * patches * 3 * patch**2 * backbone.width("image")


def tower_flop(
    backbone: Backbone, tower: Tower, tokens: int, *, start: int = 0, adapted: int | None = None
) -> Pass:
    """Of one image or prompt.

    Args:
        backbone: its `token_shortcuts` say whether the last block computes one token only.
        tower: `image` or `text`.
        tokens: T, the class token or the start and end tokens included.
        start: first block that is computed; the tower's depth computes nothing.
        adapted: first block with an adapter, whose gradient then runs back to the block behind
            it; None has no gradient.
    """
    depth, width = backbone.depth(tower), backbone.width(tower)
    if start == depth:
        return Pass(0, 0)
    mlp_width = int(backbone.blocks(tower)[0].mlp.c_fc.out_features)
    last = 1 if backbone.token_shortcuts else None
    projection = 2 * width * backbone.embed_dim
    forward = projection + (embedding_flop(backbone) if tower == "image" and start == 0 else 0)
    backward = 0 if adapted is None or adapted == depth else projection
    for block in range(start, depth):
        queries = last if block == depth - 1 else None
        forward += block_flop(tokens, width, mlp_width, queries)
        if adapted is not None and block > adapted:
            backward += backward_flop(tokens, width, mlp_width, queries)
    return Pass(forward, backward)


def image_flop(backbone: Backbone, *, token_shortcuts: bool = True) -> int:
    """Forward operations of one image in the frozen tower, as exported or as CLIP is written.

    Exported, the last block computes the class token alone; `token_shortcuts=False` computes all
    tokens: 8.82 GFLOP on ViT-B/32, 35.1 on ViT-B/16.
    """
    own = replace(backbone, token_shortcuts=token_shortcuts)
    return tower_flop(own, "image", image_tokens(backbone)).forward


def image_tokens(backbone: Backbone) -> int:
    """Class token and patches."""
    return (backbone.image_size // int(backbone.visual.conv1.kernel_size[0])) ** 2 + 1
