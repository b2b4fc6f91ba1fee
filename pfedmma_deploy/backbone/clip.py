"""A frozen open_clip CLIP with two transformer towers whose blocks can be adapted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from open_clip.model import CLIP
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma_deploy.data.preprocess import Interpolation, ResizeMode
from pfedmma_deploy.errors import BackboneError
from pfedmma_deploy.types import Tower

BlockHook = Callable[[Tower, int, Tensor], Tensor | None]
"""(tower, block, ln_1 output [B, T, d]) -> what is added to that block's output, or None."""
TokenHook = Callable[[Tower, int, Tensor], Tensor]
"""(tower, block, tokens [B, T, d]) -> the tokens that the block reads instead."""
WeightHook = Callable[[Tower, int, Tensor], Tensor]
"""(tower, block, fused query-key-value weight [3 d, d]) -> the weight to use instead."""

ADAPTABLE = (
    "a class-token ViT image tower and a causal text transformer of open_clip's own kind, such as "
    "ViT-B-32, ViT-B-16, ViT-L-14 (OpenAI, LAION, DataComp, MetaCLIP, DFN weights) or pfedmma-tiny"
)


@dataclass(frozen=True)
class Backbone:
    """A frozen CLIP, what it expects of its inputs, and its two towers as adaptable blocks.

    Nothing in it is ever trained, `logit_scale` included.
    """

    model: CLIP
    name: str
    pretrained: str
    fingerprint: str
    """SHA-256 over the names, shapes and fp32 bytes of all weights."""
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize_mode: ResizeMode
    interpolation: Interpolation
    activation: str
    """"gelu" or "quick_gelu": part of a checkpoint's identity."""
    tokenize: Callable[[Sequence[str]], Tensor] = field(repr=False)
    """Texts -> token ids, int64 [N, context_length]."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.logit_scale.device
        return device

    @property
    def logit_scale(self) -> float:
        """Factor on cosine similarities (already exponentiated)."""
        return float(self.model.logit_scale.exp())

    @property
    def context_length(self) -> int:
        """Longest prompt in tokens, start and end tokens included."""
        return int(self.model.context_length)

    @property
    def embed_dim(self) -> int:
        """Width D of the joint space."""
        return int(self.visual.proj.shape[1])

    @property
    def visual(self) -> VisionTransformer:
        """The image tower."""
        return self.model.visual

    def blocks(self, tower: Tower) -> Sequence[ResidualAttentionBlock]:
        """The transformer blocks of a tower, first to last."""
        transformer = self.visual.transformer if tower == "image" else self.model.transformer
        return list(transformer.resblocks)

    def depth(self, tower: Tower) -> int:
        """Number of blocks of a tower."""
        return len(self.blocks(tower))

    def width(self, tower: Tower) -> int:
        """Token width d of a tower."""
        return int(self.blocks(tower)[0].ln_1.normalized_shape[0])

    def encode_image(self, pixels: Tensor, hook: BlockHook | None = None) -> Tensor:
        """Image features of uint8 pixels [B, H, W, 3]: [B, D], L2-normalised."""
        return self.pool_image(self.run_blocks("image", self.embed_image(pixels), hook))

    def encode_text(self, tokens: Tensor, hook: BlockHook | None = None) -> Tensor:
        """Text features of token ids [N, <= context_length]: [N, D], L2-normalised.

        Prompts are cut to the longest one: exact, because the mask is causal and the feature is
        read at the end token, which carries the highest id.
        """
        ends = tokens.argmax(dim=-1)
        x = self.embed_tokens(tokens[:, : int(ends.max()) + 1])
        return self.pool_text(self.run_blocks("text", self.add_positions(x), hook), ends)

    def embed_image(self, pixels: Tensor) -> Tensor:
        """What the first image block reads of uint8 pixels [B, H, W, 3]: [B, 1 + patches, d]."""
        dtype = self.visual.proj.dtype
        mean = torch.tensor(self.mean, dtype=dtype, device=self.device) * 255
        std = torch.tensor(self.std, dtype=dtype, device=self.device) * 255
        x = (pixels.to(self.device, dtype) - mean) / std
        embedded: Tensor = self.visual._embeds(x.permute(0, 3, 1, 2))
        return embedded

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Embeddings of token ids [N, T], positions not yet added: [N, T, d]."""
        embedded: Tensor = self.model.token_embedding(tokens.to(self.device))
        return embedded

    def add_positions(self, x: Tensor) -> Tensor:
        """What the first text block reads of embeddings [N, T, d], T at most context_length."""
        placed: Tensor = x + self.model.positional_embedding[: x.shape[1]]
        return placed

    def run_blocks(
        self,
        tower: Tower,
        x: Tensor,
        hook: BlockHook | None = None,
        *,
        before: TokenHook | None = None,
        attention: WeightHook | None = None,
    ) -> Tensor:
        """All blocks of a tower, x [B, T, d] -> [B, T, d].

        Args:
            tower: `image` or `text`, whose mask is causal.
            x: what the first block reads.
            hook: adds to the output of a block.
            before: replaces what a block reads.
            attention: replaces a block's fused query-key-value weight.
        """
        mask = self.model.attn_mask[: x.shape[1], : x.shape[1]] if tower == "text" else None
        for index, block in enumerate(self.blocks(tower)):
            if before is not None:
                x = before(tower, index, x)
            weight = None
            if attention is not None:
                weight = attention(tower, index, block.attn.in_proj_weight)
            x = run_block(block, x, mask, hook, tower, index, weight)
        return x

    def pool_image(self, x: Tensor) -> Tensor:
        """Image features of what the last block gave, [B, T, d] -> [B, D], L2-normalised."""
        pooled, _ = self.visual._pool(x)
        return F.normalize(pooled @ self.visual.proj, dim=-1)

    def pool_text(self, x: Tensor, ends: Tensor) -> Tensor:
        """Text features [N, T, d] -> [N, D], L2-normalised, read at the places `ends` [N]."""
        rows = torch.arange(len(x), device=self.device)
        read = self.model.ln_final(x[rows, ends.to(self.device)])
        return F.normalize(read @ self.model.text_projection, dim=-1)


def run_block(
    block: ResidualAttentionBlock,
    x: Tensor,
    mask: Tensor | None,
    hook: BlockHook | None,
    tower: Tower,
    index: int,
    in_proj_weight: Tensor | None = None,
) -> Tensor:
    """One pre-norm block, x [B, T, d] -> [B, T, d], plus what the hook adds to its output."""
    h = block.ln_1(x)
    x = x + block.ls_1(attend(block.attn, h, mask, in_proj_weight))
    x = x + block.ls_2(block.mlp(block.ln_2(x)))
    added = hook(tower, index, h) if hook is not None else None
    return x if added is None else x + added


def attend(
    attention: nn.MultiheadAttention,
    h: Tensor,
    mask: Tensor | None,
    in_proj_weight: Tensor | None = None,
) -> Tensor:
    """Self-attention with the weights of torch's fused module, h [B, T, d] -> [B, T, d]."""
    batch, length, width = h.shape
    heads = attention.num_heads
    weight = attention.in_proj_weight if in_proj_weight is None else in_proj_weight
    qkv = F.linear(h, weight, attention.in_proj_bias)
    q, k, v = qkv.view(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    if h.is_cuda:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    else:
        # torch's CPU flash kernel has a backward several times slower than these products
        # at the few tokens that CLIP works on.
        scores = (q * (width // heads) ** -0.5) @ k.transpose(-2, -1)
        out = (scores if mask is None else scores + mask).softmax(dim=-1) @ v
    out = out.transpose(1, 2).reshape(batch, length, width)
    return F.linear(out, attention.out_proj.weight, attention.out_proj.bias)


def require_adaptable(model: nn.Module, name: str) -> CLIP:
    """`model` as a CLIP with two plain transformer towers.

    Raises:
        BackboneError: it is of another kind; the message lists what can be adapted.
    """
    reason = _unsupported(model)
    if reason is not None:
        raise BackboneError(
            f"The backbone {name} cannot be adapted: {reason}. Supported: {ADAPTABLE}."
        )
    assert isinstance(model, CLIP)
    return model


def _unsupported(model: nn.Module) -> str | None:
    if not isinstance(model, CLIP):
        return f"it is a {type(model).__name__}, not a CLIP with a native text transformer"
    visual = model.visual
    if not isinstance(visual, VisionTransformer):
        return f"its image tower is a {type(visual).__name__}, not a vision transformer"
    if visual.attn_pool is not None or visual.pool_type != "tok" or visual.proj is None:
        return "its image tower does not read its feature from the class token"
    if visual.image_size[0] != visual.image_size[1]:
        return f"its input is {visual.image_size[0]} x {visual.image_size[1]} px, not square"
    if model.text_pool_type != "argmax" or model.attn_mask is None:
        return "its text tower is not causal or does not read its feature at the end token"
    if not isinstance(model.text_projection, nn.Parameter):
        return "its text projection is not a plain matrix"
    for block in (*visual.transformer.resblocks, *model.transformer.resblocks):
        if type(block) is not ResidualAttentionBlock:
            return f"it has blocks of type {type(block).__name__}"
    return None
