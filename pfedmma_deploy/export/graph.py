"""The towers of a CLIP written for export, with all clients' adapters inside.

The same function as `Backbone.encode_image` and `encode_text`, in operations that export to plain
ONNX operators and that ONNX Runtime's optimizer recognizes and fuses: queries, keys and values
apart, batch first, softmax attention spelled out, the class token by concatenation, normalisation
by `rsqrt`. Weights are the backbone's own (LayerScale merged into the projections). What clients
add is a module per place (see `adapters.base.ExportBanks`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.errors import ExportError

Places = Mapping[str, nn.Module]
"""The clients' modules in one tower, by place."""


class ImageGraph(nn.Module):
    """pixel_values uint8 [B, H, W, 3], client int64 [B], strength [B] -> image_embeds [B, D].

    Features are L2-normalised.

    Args:
        backbone: the frozen CLIP.
        places: what clients have in this tower.

    Raises:
        ExportError: a place that the tower does not have.
    """

    def __init__(self, backbone: Backbone, places: Places) -> None:
        super().__init__()
        visual = backbone.visual
        mean, std = (torch.tensor(v)[:, None, None] * 255 for v in (backbone.mean, backbone.std))
        self.pixel_mean, self.pixel_std = nn.Buffer(mean), nn.Buffer(std)
        self.patches = visual.conv1
        self.class_token = _buffer(visual.class_embedding)
        self.positions = _buffer(visual.positional_embedding)
        self.ln_pre = visual.ln_pre
        left = dict(places)
        self.blocks = nn.ModuleList()
        sources = backbone.blocks("image")
        for index, source in enumerate(sources):
            # Only the class token leaves the last block.
            self.blocks.append(_Block(source, index, left, only_first=index == len(sources) - 1))
        self.ln_post = visual.ln_post
        self.projection = _buffer(visual.proj)
        self.frame = left.pop("frame", None)
        self.head = left.pop("head", None)
        _require_none(left, "image", backbone)

    def forward(self, pixel_values: Tensor, client: Tensor, strength: Tensor) -> Tensor:
        amount = strength[:, None, None]
        # Permuted while they are bytes; and ONNX Runtime is slow at adding three numbers at a time.
        pixels = pixel_values.permute(0, 3, 1, 2).float()
        pixels = (pixels - self.pixel_mean) / self.pixel_std
        if self.frame is not None:
            pixels = self.frame(pixels, client, amount)
        x = self.patches(pixels).flatten(2).permute(0, 2, 1)
        # Adding to a zeroed token broadcasts over the batch without an Expand, which would
        # stop ONNX Runtime from recognizing the embedding.
        x = torch.cat([x[:, :1] * 0 + self.class_token, x], dim=1) + self.positions
        x = self.ln_pre(x)
        for block in self.blocks:
            x = block(x, client, amount, None)
        x = self.ln_post(x[:, 0]) @ self.projection
        if self.head is not None:
            own = self.head(x, client)
            # Of the length of x, so that both weigh alike, and that client 0 keeps x in every bit.
            own = own * (_length(x) / _length(own))
            x = x + strength[:, None] * (own - x)
        return _normalise(x)


class TextGraph(nn.Module):
    """input_ids int64 [N, context], client int64 [N], strength [N] -> text_embeds [N, D].

    Takes and raises what `ImageGraph` does. A learned context has no strength in here: zero-shot
    reads other tokens, so whoever calls the graph mixes the features of both.
    """

    def __init__(self, backbone: Backbone, places: Places) -> None:
        super().__init__()
        model = backbone.model
        self.tokens = model.token_embedding
        self.positions = _buffer(model.positional_embedding)
        length = backbone.context_length
        self.mask = nn.Buffer(torch.full((length, length), float("-inf")).triu_(1))
        left = dict(places)
        self.blocks = nn.ModuleList()
        for index, source in enumerate(backbone.blocks("text")):
            self.blocks.append(_Block(source, index, left))
        self.ln_final = model.ln_final
        self.projection = _buffer(model.text_projection)
        self.context = left.pop("context", None)
        _require_none(left, "text", backbone)

    def forward(self, input_ids: Tensor, client: Tensor, strength: Tensor) -> Tensor:
        amount = strength[:, None, None]
        x = self.tokens(input_ids)
        if self.context is not None:
            x = self.context(x, input_ids, client)
        x = x + self.positions
        for block in self.blocks:
            x = block(x, client, amount, self.mask)
        # The end token has the highest id: its place is where CLIP reads the feature. In 32 bits,
        # because few runtimes have ArgMax of int64; not as floats, which some round to bfloat16.
        ends = input_ids.int().argmax(dim=-1)
        x = x[torch.arange(x.shape[0]), ends]
        return _normalise(self.ln_final(x) @ self.projection)


class ClassifierGraph(nn.Module):
    """pixel_values, client, strength -> logits [B, C], each client with its own text features.

    Those of other strengths than 0 and 1 are mixed from the two, since the text tower is not here.

    Args:
        image: the image tower.
        text_embeds: [clients + 1, C, D] at strength 1.
        logit_scale: factor on the cosines.
    """

    def __init__(self, image: nn.Module, text_embeds: Tensor, logit_scale: float) -> None:
        super().__init__()
        self.image = image
        self.logit_scale = logit_scale
        text = (text_embeds * logit_scale).transpose(1, 2).contiguous()
        self.text, self.zero_shot = nn.Buffer(text), nn.Buffer(text[:1].clone())

    def forward(self, pixel_values: Tensor, client: Tensor, strength: Tensor) -> Tensor:
        features: Tensor = self.image(pixel_values, client, strength)
        text = self.text.index_select(0, client)
        text = self.zero_shot + strength[:, None, None] * (text - self.zero_shot)
        text = text * (self.logit_scale / _length(text, 1))
        return (features.unsqueeze(1) @ text).squeeze(1)


class _Block(nn.Module):
    """One frozen pre-norm block, and what clients have beside it and in its attention.

    With `only_first` its output is that of the first token alone, [B, 1, d]. All that is left to
    do for the others are their keys and values: a sixth of the block.
    """

    def __init__(
        self,
        source: ResidualAttentionBlock,
        index: int,
        places: dict[str, nn.Module],
        *,
        only_first: bool = False,
    ) -> None:
        """Takes its own modules out of `places`."""
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
        self.adapter = places.pop(f"blocks.{index}.adapter", None)
        self.low_rank: Any = places.pop(f"blocks.{index}.low_rank", None)

    def forward(self, x: Tensor, client: Tensor, strength: Tensor, mask: Tensor | None) -> Tensor:
        keys = query = self.ln_1(x)
        if self.only_first:
            x, query = x[:, :1], query[:, :1]
        x = x + self.attend(query, keys, client, strength, mask)
        z = self.up(self.ln_2(x))
        if self.quick_gelu:
            z = z * torch.sigmoid(1.702 * z)
        else:
            # The exact GELU in operators of any opset, in the order that ONNX Runtime fuses.
            z = z * 0.5 * (torch.erf(z / math.sqrt(2)) + 1)
        x = x + self.down(z)
        return x if self.adapter is None else x + self.adapter(query, client, strength)

    def attend(
        self, query: Tensor, keys: Tensor, client: Tensor, strength: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Attention of the tokens `query` [B, T', d] over all tokens `keys` [B, T, d]."""
        batch, length, width = query.shape
        split = (self.heads, width // self.heads)
        q, v = self.q(query), self.v(keys)
        if self.low_rank is not None:
            q = q + self.low_rank.queries(query, client, strength)
            v = v + self.low_rank.values(keys, client, strength)
        q = q.unflatten(-1, split).permute(0, 2, 1, 3)
        k = self.k(keys).unflatten(-1, split).permute(0, 2, 3, 1)
        v = v.unflatten(-1, split).permute(0, 2, 1, 3)
        scores = (q @ k) * (width // self.heads) ** -0.5
        if mask is not None:
            scores = scores + mask
        mixed = (scores.softmax(dim=-1) @ v).permute(0, 2, 1, 3)
        out: Tensor = self.out(mixed.reshape(batch, length, width))
        return out


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


def _require_none(left: Places, tower: str, backbone: Backbone) -> None:
    for place in left:
        raise ExportError(
            f"The clients' adapters sit at {place} of the {tower} tower, which {backbone.name} "
            "does not have: they were trained on another backbone."
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


def _buffer(value: Tensor) -> nn.Buffer:
    return nn.Buffer(value.detach())


def _length(x: Tensor, dim: int = -1) -> Tensor:
    return (x * x).sum(dim=dim, keepdim=True).sqrt()


def _normalise(x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True))
