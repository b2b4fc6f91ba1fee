"""A frozen open_clip CLIP with two transformer towers whose blocks can be adapted.

`Backbone` is the model, `Activations` are what its frozen lower blocks computed of some inputs (so
that it need not be computed again), `ClassTexts` are class names as it reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from open_clip.model import CLIP
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from pfedmma_deploy.backbone.blocks import BlockHook, TokenHook, WeightHook, run_block
from pfedmma_deploy.backbone.linear import Linear, fast_linear
from pfedmma_deploy.config import Autocast
from pfedmma_deploy.data.class_names import build_prompts
from pfedmma_deploy.data.pixels import Interpolation, ResizeMode
from pfedmma_deploy.types import Tower


@dataclass(frozen=True)
class Activations:
    """Output of a tower's frozen lower blocks for some inputs, cached or about to be."""

    tokens: Tensor
    """[B, T, d], the input of block `start`; features [B, D] where `start` is the tower's depth."""
    start: int

    def __len__(self) -> int:
        return len(self.tokens)


Images = Tensor | Activations
"""uint8 pixels [B, H, W, 3], or the activations of the frozen lower blocks."""


def pixels_of(images: Images) -> Tensor:
    """`images`, known to be pixels: for adapters that take part from the first block on."""
    if isinstance(images, Activations):
        raise TypeError(f"pixels are needed here, not activations of block {images.start}")
    return images


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
    token_shortcuts: bool = True
    """Compute no token that cannot change a feature: those behind the end of a prompt, and in the
    last block all but the one that is read. False is the naive baseline."""
    precision: Autocast = "none"
    """Of the matmuls in blocks and adapters: fp32, `bf16` or `fp16`.

    The residual stream, features, scores and losses are fp32 in any case: a cosine times a logit
    scale of 100 has steps of 0.5 in bf16, and fp16 gradients then need no scaling (they differ by
    0.1 % from fp32 on pfedmma-tiny, with a loss scale of 1 as with one of 16,384)."""
    linear: Linear = field(default=fast_linear, repr=False)
    """Applies the blocks' own weights: `fast_linear`, or torch's `F.linear`."""
    run_block: Callable[..., Tensor] = field(default=run_block, repr=False)
    """`blocks.run_block`, or the same compiled."""

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

    def encode_image(
        self,
        images: Images,
        hook: BlockHook | None = None,
        *,
        attention: WeightHook | None = None,
    ) -> Tensor:
        """Image features of uint8 pixels [B, H, W, 3] or of activations: [B, D], L2-normalised."""
        if isinstance(images, Activations):
            x, start = images.tokens.to(self.device), images.start
            if start == self.depth("image"):
                return x
        else:
            x, start = self.embed_image(images), 0
        read = x.new_zeros(len(x), dtype=torch.long) if self.token_shortcuts else None
        x = self.run_blocks("image", x, hook, attention=attention, start=start, read=read)
        return self.pool_image(x)

    def encode_text(
        self,
        tokens: Tensor,
        hook: BlockHook | None = None,
        activations: Activations | None = None,
        *,
        attention: WeightHook | None = None,
    ) -> Tensor:
        """Text features of token ids [N, <= context_length]: [N, D], L2-normalised.

        Prompts are cut to the longest one: exact, because the mask is causal and the feature is
        read at the end token, which carries the highest id.
        """
        ends = tokens.argmax(dim=-1).to(self.device)
        if activations is not None and activations.start == self.depth("text"):
            return activations.tokens
        start = 0 if activations is None else activations.start
        x = self._embed_text(tokens) if activations is None else activations.tokens
        if not self.token_shortcuts:
            x = self.run_blocks("text", x, hook, attention=attention, start=start)
            return self.pool_text(x, ends)
        x = self.run_blocks("text", x, hook, attention=attention, start=start, read=ends)
        return self.pool_text(x, torch.zeros_like(ends))

    @torch.no_grad()
    def image_activations(self, pixels: Tensor, start: int) -> Activations:
        """Input of block `start` for uint8 pixels [B, H, W, 3]; past the last, the features."""
        if start == self.depth("image"):
            return Activations(self.encode_image(pixels), start)
        x = self.run_blocks("image", self.embed_image(pixels), stop=start)
        return Activations(x, start)

    @torch.no_grad()
    def text_activations(self, tokens: Tensor, start: int) -> Activations:
        """Input of block `start` for token ids [N, T]; past the last, the features."""
        if start == self.depth("text"):
            return Activations(self.encode_text(tokens), start)
        return Activations(self.run_blocks("text", self._embed_text(tokens), stop=start), start)

    def prompt_length(self, tokens: Tensor) -> int:
        """How many of the tokens [N, T] of prompts are computed: up to the last end token."""
        return int(tokens.argmax(dim=-1).max()) + 1 if self.token_shortcuts else tokens.shape[1]

    def _embed_text(self, tokens: Tensor) -> Tensor:
        return self.add_positions(self.embed_tokens(tokens[:, : self.prompt_length(tokens)]))

    def embed_image(self, pixels: Tensor) -> Tensor:
        """Input of the first image block for uint8 pixels [B, H, W, 3]: [B, 1 + patches, d]."""
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
        """Input of the first text block for embeddings [N, T, d], T at most context_length."""
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
        start: int = 0,
        stop: int | None = None,
        read: Tensor | None = None,
    ) -> Tensor:
        """Blocks of a tower, x [B, T, d] -> [B, T, d], or [B, 1, d] with `read`.

        Args:
            tower: `image` or `text`, whose mask is causal.
            x: input of the first of them.
            hook: adds to the output of a block.
            before: replaces the input of a block.
            attention: replaces a block's fused query-key-value weight.
            start: first block to run.
            stop: block to stop before; default after the last.
            read: int64 [B], the only token of each row that is wanted of the tower's last block,
                which then computes nothing else for the others than their keys and values.
        """
        mask = self.model.attn_mask[: x.shape[1], : x.shape[1]] if tower == "text" else None
        blocks = self.blocks(tower)
        for index in range(start, len(blocks) if stop is None else stop):
            block = blocks[index]
            if before is not None:
                x = before(tower, index, x)
            weight = None
            if attention is not None:
                weight = attention(tower, index, block.attn.in_proj_weight)
            only = read if index == len(blocks) - 1 else None
            with self._autocast():
                x = self.run_block(block, x, mask, hook, tower, index, weight, only, self.linear)
        return x

    def _autocast(self) -> AbstractContextManager[None]:
        if self.precision == "none":
            return nullcontext()
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        return torch.autocast(self.device.type, dtype)

    def pool_image(self, x: Tensor) -> Tensor:
        """Image features of the last block's output, [B, T, d] -> [B, D], L2-normalised."""
        return F.normalize(self.project_image(x), dim=-1)

    def project_image(self, x: Tensor) -> Tensor:
        """The same before normalisation, for adapters built on CLIP's raw features."""
        pooled, _ = self.visual._pool(x)
        projected: Tensor = pooled @ self.visual.proj
        return projected

    def pool_patches(self, x: Tensor) -> Tensor:
        """Features of the patches, [B, 1 + patches, d] -> [B, patches, D], L2-normalised.

        They pass the layer norm and the projection of the class token.
        """
        return F.normalize(self.visual.ln_post(x[:, 1:]) @ self.visual.proj, dim=-1)

    def pool_text(self, x: Tensor, ends: Tensor) -> Tensor:
        """Text features [N, T, d] -> [N, D], L2-normalised, read at the places `ends` [N]."""
        rows = torch.arange(len(x), device=self.device)
        read = self.model.ln_final(x[rows, ends.to(self.device)])
        return F.normalize(read @ self.model.text_projection, dim=-1)


BARE = "{}."
"""Around a class name that a learned context stands before (CoOp, arXiv 2109.01134)."""


@dataclass(frozen=True)
class ClassTexts:
    """Class names in their order, tokenized in the two ways that methods need."""

    names: tuple[str, ...]
    prompts: Tensor
    """int64 [C, context]: the hand-written prompt around each name."""
    bare: Tensor
    """int64 [C, context]: each name alone with a full stop."""
    activations: Activations | None = None
    """Of `prompts` in the frozen lower text blocks; None: computed each time."""


def class_texts(backbone: Backbone, names: Sequence[str], template: str) -> ClassTexts:
    """`names` tokenized; `template` holds `{}` where the name goes."""
    return ClassTexts(
        names=tuple(names),
        prompts=backbone.tokenize(build_prompts(names, template)),
        bare=backbone.tokenize(build_prompts(names, BARE)),
    )


def with_activations(backbone: Backbone, texts: ClassTexts, start: int) -> ClassTexts:
    """`texts` with the input of text block `start` for the prompts."""
    if start == 0:
        return texts
    return replace(texts, activations=backbone.text_activations(texts.prompts, start))
