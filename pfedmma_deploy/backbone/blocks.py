"""One transformer block, with the places where an adapter may take part."""

from __future__ import annotations

from collections.abc import Callable

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma_deploy.backbone.linear import Linear
from pfedmma_deploy.types import Tower

BlockHook = Callable[[Tower, int, Tensor], Tensor | None]
"""(tower, block, ln_1 output [B, T, d]) -> what is added to that block's output, or None."""
TokenHook = Callable[[Tower, int, Tensor], Tensor]
"""(tower, block, tokens [B, T, d]) -> the tokens that the block reads instead."""
WeightHook = Callable[[Tower, int, Tensor], Tensor]
"""(tower, block, fused query-key-value weight [3 d, d]) -> the weight to use instead."""


def run_block(
    block: ResidualAttentionBlock,
    x: Tensor,
    mask: Tensor | None,
    hook: BlockHook | None,
    tower: Tower,
    index: int,
    in_proj_weight: Tensor | None = None,
    read: Tensor | None = None,
    linear: Linear = F.linear,
) -> Tensor:
    """One pre-norm block, x [B, T, d] -> [B, T, d], plus what the hook adds to its output.

    With `read` [B], only that token of each row is computed: [B, 1, d]. `linear` applies the
    block's own weights.
    """
    h = block.ln_1(x)
    query = h
    if read is not None:
        rows = torch.arange(len(x), device=x.device)
        x, query = x[rows, read].unsqueeze(1), h[rows, read].unsqueeze(1)
        # [B, 1, 1, T]: each row's own line of the mask, for every head.
        mask = None if mask is None else mask[read][:, None, None]
    x = x + block.ls_1(attend(block.attn, h, mask, in_proj_weight, query, linear))
    wide = linear(block.ln_2(x), block.mlp.c_fc.weight, block.mlp.c_fc.bias)
    out = linear(block.mlp.gelu(wide), block.mlp.c_proj.weight, block.mlp.c_proj.bias)
    x = x + block.ls_2(out)
    added = hook(tower, index, query) if hook is not None else None
    return x if added is None else x + added


def attend(
    attention: nn.MultiheadAttention,
    h: Tensor,
    mask: Tensor | None,
    in_proj_weight: Tensor | None = None,
    query: Tensor | None = None,
    linear: Linear = F.linear,
) -> Tensor:
    """Self-attention with the weights of torch's fused module, h [B, T, d] -> [B, T, d].

    `query` [B, Q, d] are the tokens to compute, default all of h; then the result is [B, Q, d].
    """
    batch, length, width = h.shape
    heads = attention.num_heads
    size = width // heads
    weight = attention.in_proj_weight if in_proj_weight is None else in_proj_weight
    bias = attention.in_proj_bias
    if query is None or query is h:
        qkv = linear(h, weight, bias).view(batch, length, 3, heads, size)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        queries = length
    else:
        queries = query.shape[1]
        q = linear(query, weight[:width], bias[:width])
        q = q.view(batch, queries, heads, size).transpose(1, 2)
        kv = linear(h, weight[width:], bias[width:]).view(batch, length, 2, heads, size)
        k, v = kv.permute(2, 0, 3, 1, 4)
    if h.is_cuda:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    else:
        # torch's CPU flash kernel has a backward several times slower than these matmuls
        # at the few tokens that CLIP works on.
        scores = (q * size**-0.5) @ k.transpose(-2, -1)
        out = (scores if mask is None else scores + mask).softmax(dim=-1) @ v
    out = out.transpose(1, 2).reshape(batch, queries, width)
    return linear(out, attention.out_proj.weight, attention.out_proj.bias)
