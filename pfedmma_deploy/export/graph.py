"""The towers of a CLIP written for export, with all clients' adapters inside.

The same function as `Backbone.encode_image` and `encode_text`, in a form that exports to plain ONNX
operators and that ONNX Runtime's optimizer recognizes and fuses: queries, keys and values apart,
batch first, softmax attention spelled out, the class token by concatenation, normalisation by
`rsqrt`. Weights are the backbone's own (LayerScale folded into the projections).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pfedmma_deploy.adapters.graph_form import PLACEHOLDER, below
from pfedmma_deploy.export.block_graph import adaptable_blocks
from pfedmma_deploy.export.clients import AdapterBanks
from pfedmma_deploy.export.context_banks import ContextBank
from pfedmma_deploy.export.feature_banks import FrameBank, feature_head

if TYPE_CHECKING:
    from pfedmma_deploy.backbone.clip import Backbone

__all__ = ["ClassifierGraph", "ImageGraph", "TextGraph"]

NONE: Mapping[str, Tensor] = MappingProxyType({})


class ImageGraph(nn.Module):
    """pixel_values uint8 [B, H, W, 3], client int64 [B] -> image_embeds [B, D], L2-normalised.

    Args:
        backbone: the frozen CLIP.
        banks: pFedMMA's adapter of all clients, by block.
        scale: factor on what the adapters, and the low-rank changes, add.
        parts: what else the clients have in this tower, by bank (see `stack_parts`).
    """

    def __init__(
        self,
        backbone: Backbone,
        banks: Mapping[int, AdapterBanks],
        scale: float,
        parts: Mapping[str, Tensor] = NONE,
    ) -> None:
        super().__init__()
        visual = backbone.visual
        mean, std = (torch.tensor(v)[:, None, None] * 255 for v in (backbone.mean, backbone.std))
        self.pixel_mean, self.pixel_std = nn.Buffer(mean), nn.Buffer(std)
        self.patches = visual.conv1
        self.class_token = _buffer(visual.class_embedding)
        self.positions = _buffer(visual.positional_embedding)
        self.ln_pre = visual.ln_pre
        blocks = backbone.blocks("image")
        self.blocks = adaptable_blocks(blocks, banks, scale, parts, last_reads_first=True)
        self.ln_post = visual.ln_post
        self.projection = _buffer(visual.proj)
        self.frame = FrameBank(parts["frame.pixels"]) if "frame.pixels" in parts else None
        self.head = feature_head(below(parts, "head."))

    def forward(self, pixel_values: Tensor, client: Tensor) -> Tensor:
        # Turned while they are bytes; and ONNX Runtime is slow at adding three numbers at a time.
        pixels = pixel_values.permute(0, 3, 1, 2).float()
        pixels = (pixels - self.pixel_mean) / self.pixel_std
        if self.frame is not None:
            pixels = self.frame(pixels, client)
        x = self.patches(pixels).flatten(2).permute(0, 2, 1)
        # Adding to a zeroed token broadcasts over the batch without an Expand, which would
        # stop ONNX Runtime from recognizing the embedding.
        x = torch.cat([x[:, :1] * 0 + self.class_token, x], dim=1) + self.positions
        x = self.ln_pre(x)
        for block in self.blocks:
            x = block(x, client, None)
        x = self.ln_post(x[:, 0]) @ self.projection
        return _normalise(x if self.head is None else self.head(x, client))


class TextGraph(nn.Module):
    """input_ids int64 [N, context], client int64 [N] -> text_embeds [N, D], L2-normalised.

    Takes what `ImageGraph` takes.
    """

    def __init__(
        self,
        backbone: Backbone,
        banks: Mapping[int, AdapterBanks],
        scale: float,
        parts: Mapping[str, Tensor] = NONE,
    ) -> None:
        super().__init__()
        model = backbone.model
        self.tokens = model.token_embedding
        self.positions = _buffer(model.positional_embedding)
        length = backbone.context_length
        self.mask = nn.Buffer(torch.full((length, length), float("-inf")).triu_(1))
        self.blocks = adaptable_blocks(backbone.blocks("text"), banks, scale, parts)
        self.ln_final = model.ln_final
        self.projection = _buffer(model.text_projection)
        self.context = None
        if "context.vectors" in parts:
            placeholder = int(backbone.tokenize([PLACEHOLDER])[0, 1])
            self.context = ContextBank(parts["context.vectors"], placeholder)

    def forward(self, input_ids: Tensor, client: Tensor) -> Tensor:
        x = self.tokens(input_ids)
        if self.context is not None:
            x = self.context(x, input_ids, client)
        x = x + self.positions
        for block in self.blocks:
            x = block(x, client, self.mask)
        # The end token has the highest id: its place is where CLIP reads the feature. In 32 bits,
        # because few runtimes have ArgMax of int64; not as floats, which some round to bfloat16.
        ends = input_ids.int().argmax(dim=-1)
        x = x[torch.arange(x.shape[0]), ends]
        return _normalise(self.ln_final(x) @ self.projection)


class ClassifierGraph(nn.Module):
    """pixel_values, client -> logits [B, C]; each client has its own text features baked in."""

    def __init__(self, image: ImageGraph, text_embeds: Tensor, logit_scale: float) -> None:
        super().__init__()
        self.image = image
        self.text = nn.Buffer((text_embeds * logit_scale).transpose(1, 2).contiguous())

    def forward(self, pixel_values: Tensor, client: Tensor) -> Tensor:
        features: Tensor = self.image(pixel_values, client)
        return (features.unsqueeze(1) @ self.text.index_select(0, client)).squeeze(1)


def _buffer(value: Tensor) -> nn.Buffer:
    return nn.Buffer(value.detach())


def _normalise(x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True))
