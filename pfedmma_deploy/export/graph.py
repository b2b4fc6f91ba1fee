"""The towers of a CLIP written for export, with all clients' adapters inside.

The same function as `Backbone.encode_image` and `encode_text`, in a form that exports to plain ONNX
operators and that ONNX Runtime's optimizer recognizes and fuses: queries, keys and values apart,
batch first, softmax attention spelled out, the class token by concatenation, normalisation by
`rsqrt`. Weights are the backbone's own (LayerScale folded into the projections).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.export.clients import AdapterBanks

if TYPE_CHECKING:
    from open_clip.transformer import ResidualAttentionBlock

    from pfedmma_deploy.backbone.clip import Backbone

__all__ = ["ClassifierGraph", "ImageGraph", "TextGraph"]


class ImageGraph(nn.Module):
    """pixel_values uint8 [B, H, W, 3], client int64 [B] -> image_embeds [B, D], L2-normalised."""

    def __init__(self, backbone: Backbone, banks: Mapping[int, AdapterBanks], scale: float) -> None:
        super().__init__()
        visual = backbone.visual
        mean, std = (torch.tensor(v)[:, None, None] * 255 for v in (backbone.mean, backbone.std))
        self.pixel_mean, self.pixel_std = nn.Buffer(mean), nn.Buffer(std)
        self.patches = visual.conv1
        self.class_token = _buffer(visual.class_embedding)
        self.positions = _buffer(visual.positional_embedding)
        self.ln_pre = visual.ln_pre
        self.blocks = _blocks(backbone.blocks("image"), banks, scale, last_reads_first=True)
        self.ln_post = visual.ln_post
        self.projection = _buffer(visual.proj)

    def forward(self, pixel_values: Tensor, client: Tensor) -> Tensor:
        # Turned while they are bytes; and ONNX Runtime is slow at adding three numbers at a time.
        pixels = pixel_values.permute(0, 3, 1, 2).float()
        x = self.patches((pixels - self.pixel_mean) / self.pixel_std).flatten(2).permute(0, 2, 1)
        # Adding to a zeroed token broadcasts over the batch without an Expand, which would
        # stop ONNX Runtime from recognizing the embedding.
        x = torch.cat([x[:, :1] * 0 + self.class_token, x], dim=1) + self.positions
        x = self.ln_pre(x)
        for block in self.blocks:
            x = block(x, client, None)
        return _normalise(self.ln_post(x[:, 0]) @ self.projection)


class TextGraph(nn.Module):
    """input_ids int64 [N, context], client int64 [N] -> text_embeds [N, D], L2-normalised."""

    def __init__(self, backbone: Backbone, banks: Mapping[int, AdapterBanks], scale: float) -> None:
        super().__init__()
        model = backbone.model
        self.tokens = model.token_embedding
        self.positions = _buffer(model.positional_embedding)
        length = backbone.context_length
        self.mask = nn.Buffer(torch.full((length, length), float("-inf")).triu_(1))
        self.blocks = _blocks(backbone.blocks("text"), banks, scale)
        self.ln_final = model.ln_final
        self.projection = _buffer(model.text_projection)

    def forward(self, input_ids: Tensor, client: Tensor) -> Tensor:
        x = self.tokens(input_ids) + self.positions
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


class _Block(nn.Module):
    """One frozen pre-norm block, and the adapter beside it where there is one.

    With `only_first` its output is that of the first token alone, [B, 1, d]. All that is left to
    do for the others are their keys and values: a sixth of the block.
    """

    def __init__(
        self,
        source: ResidualAttentionBlock,
        banks: AdapterBanks | None,
        scale: float,
        *,
        only_first: bool,
    ) -> None:
        super().__init__()
        self.only_first = only_first
        attention = source.attn
        self.heads = int(attention.num_heads)
        self.ln_1, self.ln_2 = source.ln_1, source.ln_2
        weights = attention.in_proj_weight.detach().chunk(3)
        biases = attention.in_proj_bias.detach().chunk(3)
        self.q, self.k, self.v = map(_linear, weights, biases)
        self.out = _scaled(attention.out_proj, source.ls_1)
        self.up, self.down = source.mlp.c_fc, _scaled(source.mlp.c_proj, source.ls_2)
        self.quick_gelu = is_quick_gelu(source.mlp.gelu)
        self.adapter = None if banks is None else _Adapter(banks, scale)

    def forward(self, x: Tensor, client: Tensor, mask: Tensor | None) -> Tensor:
        everywhere = h = self.ln_1(x)
        if self.only_first:
            x, h = x[:, :1], h[:, :1]
        x = x + self.attend(h, everywhere, mask)
        z = self.up(self.ln_2(x))
        z = z * torch.sigmoid(1.702 * z) if self.quick_gelu else _gelu(z)
        x = x + self.down(z)
        return x if self.adapter is None else x + self.adapter(h, client)

    def attend(self, h: Tensor, everywhere: Tensor, mask: Tensor | None) -> Tensor:
        """What the tokens h [B, T', d] take from all tokens [B, T, d]."""
        batch, length, width = h.shape
        split = (self.heads, width // self.heads)
        q = self.q(h).unflatten(-1, split).permute(0, 2, 1, 3)
        k = self.k(everywhere).unflatten(-1, split).permute(0, 2, 3, 1)
        v = self.v(everywhere).unflatten(-1, split).permute(0, 2, 1, 3)
        scores = (q @ k) * (width // self.heads) ** -0.5
        if mask is not None:
            scores = scores + mask
        mixed = (scores.softmax(dim=-1) @ v).permute(0, 2, 1, 3)
        out: Tensor = self.out(mixed.reshape(batch, length, width))
        return out


class _Adapter(nn.Module):
    """pFedMMA's adapter (arXiv 2507.05394) with one row of weights per client, gathered per item.

    The scale stays apart from the weights: multiplied into them it would push them below what
    half precision can hold.
    """

    def __init__(self, banks: AdapterBanks, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.down_weight = nn.Buffer(banks.down_weight)
        self.down_bias = nn.Buffer(banks.down_bias)
        self.pair_weight = nn.Buffer(banks.pair_weight)
        self.pair_bias = nn.Buffer(banks.pair_bias)
        self.up_weight = nn.Buffer(banks.up_weight)
        self.up_bias = nn.Buffer(banks.up_bias)

    def forward(self, h: Tensor, client: Tensor) -> Tensor:
        def of(bank: Tensor) -> Tensor:
            # index_select becomes one Gather on the named initializer.
            return bank.index_select(0, client)

        z = (h @ of(self.down_weight) + of(self.down_bias)).relu()
        z = (z @ of(self.pair_weight) + of(self.pair_bias)).relu()
        return (z @ of(self.up_weight) + of(self.up_bias)) * self.scale


def is_quick_gelu(activation: nn.Module) -> bool:
    """Whether a block uses QuickGELU.

    Raises:
        ExportError: it uses neither QuickGELU nor the exact GELU.
    """
    name = type(activation).__name__
    if name == "QuickGELU":
        return True
    if isinstance(activation, nn.GELU) and activation.approximate == "none":
        return False
    raise ExportError(f"The activation {activation!r} cannot be exported: GELU and QuickGELU can.")


def _blocks(
    sources: Sequence[ResidualAttentionBlock],
    banks: Mapping[int, AdapterBanks],
    scale: float,
    *,
    last_reads_first: bool = False,
) -> nn.ModuleList:
    """The blocks of a tower; with `last_reads_first` only the first token leaves the last one."""
    last = len(sources) - 1 if last_reads_first else None
    return nn.ModuleList(
        _Block(source, banks.get(index), scale, only_first=index == last)
        for index, source in enumerate(sources)
    )


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    layer.bias = nn.Parameter(bias.contiguous(), requires_grad=False)
    return layer


def _scaled(layer: nn.Linear, scale: nn.Module) -> nn.Linear:
    """The layer with open_clip's LayerScale behind it, where there is one, as one layer."""
    gamma = getattr(scale, "gamma", None)
    if gamma is None:
        return layer
    gamma = gamma.detach()
    return _linear(layer.weight.detach() * gamma[:, None], layer.bias.detach() * gamma)


def _gelu(x: Tensor) -> Tensor:
    """The exact GELU in operators of any opset, in the order that ONNX Runtime fuses at loading."""
    return x * 0.5 * (torch.erf(x / math.sqrt(2)) + 1)


def _buffer(value: Tensor) -> nn.Buffer:
    return nn.Buffer(value.detach())


def _normalise(x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True))
