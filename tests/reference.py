"""pFedMMA once more, straight from its equations, in float64 and sharing no code with the package.

Towers, adapter and loss are plain functions of dictionaries of arrays. Gradients are torch's own
through the s-scaled forward pass, divided by s: an adapter's parameters act on the loss only
through its own scaled output, so "as if s were 1" means exactly the true gradient over s.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def layer_norm(x: Tensor, w: Weights, name: str) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def attention(h: Tensor, w: Weights, name: str, heads: int, causal: bool) -> Tensor:
    _, tokens, width = h.shape
    qkv = h @ w[f"{name}.in_proj_weight"].T + w[f"{name}.in_proj_bias"]
    out = torch.zeros_like(h)
    for i in range(heads):
        size = width // heads
        q, k, v = (qkv[..., j * width + i * size : j * width + (i + 1) * size] for j in range(3))
        scores = q @ k.transpose(1, 2) / math.sqrt(size)
        if causal:
            future = torch.triu(torch.ones(tokens, tokens, dtype=torch.bool), diagonal=1)
            scores = scores.masked_fill(future, -math.inf)
        out[..., i * size : (i + 1) * size] = torch.softmax(scores, dim=-1) @ v
    return out @ w[f"{name}.out_proj.weight"].T + w[f"{name}.out_proj.bias"]


def block(x: Tensor, w: Weights, name: str, heads: int, causal: bool, added: Tensor) -> Tensor:
    x = x + attention(layer_norm(x, w, f"{name}.ln_1"), w, f"{name}.attn", heads, causal)
    hidden = layer_norm(x, w, f"{name}.ln_2") @ w[f"{name}.mlp.c_fc.weight"].T
    hidden = hidden + w[f"{name}.mlp.c_fc.bias"]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + hidden @ w[f"{name}.mlp.c_proj.weight"].T + w[f"{name}.mlp.c_proj.bias"] + added


def adapter(x: Tensor, w: Weights, a: Weights, tower: str, index: int, s: float) -> Tensor:
    """a = s * (Up relu(W relu(Down ln_1(x) + b_d) + b_w) + b_u); nothing below block 1 of 3."""
    if index == 0:
        return torch.zeros_like(x)
    prefix = "visual.transformer" if tower == "image" else "transformer"
    h = layer_norm(x, w, f"{prefix}.resblocks.{index}.ln_1")
    own, pair = f"{tower}.{index}", f"pair.{index - 1}"
    z = torch.clamp(h @ a[f"{own}.down.weight"].T + a[f"{own}.down.bias"], min=0)
    z = torch.clamp(z @ a[f"{pair}.weight"].T + a[f"{pair}.bias"], min=0)
    return s * (z @ a[f"{own}.up.weight"].T + a[f"{own}.up.bias"])


def image_features(pixels: Tensor, w: Weights, a: Weights, s: float) -> Tensor:
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=torch.float64)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=torch.float64)
    x = (pixels.double() / 255 - mean) / std
    rows = []
    for top in (0, 8):
        for left in (0, 8):
            patch = x[:, top : top + 8, left : left + 8]
            rows.append(torch.einsum("bhwc,dchw->bd", patch, w["visual.conv1.weight"]))
    first = w["visual.class_embedding"].expand(len(x), -1)
    tokens = torch.stack([first, *rows], dim=1) + w["visual.positional_embedding"]
    tokens = layer_norm(tokens, w, "visual.ln_pre")
    for i in range(3):
        name = f"visual.transformer.resblocks.{i}"
        tokens = block(tokens, w, name, 2, False, adapter(tokens, w, a, "image", i, s))
    feature = layer_norm(tokens[:, 0], w, "visual.ln_post") @ w["visual.proj"]
    unit: Tensor = feature / feature.norm(dim=-1, keepdim=True)
    return unit


def text_features(ids: Tensor, w: Weights, a: Weights, s: float) -> Tensor:
    tokens = w["token_embedding.weight"][ids] + w["positional_embedding"]
    for i in range(3):
        name = f"transformer.resblocks.{i}"
        tokens = block(tokens, w, name, 2, True, adapter(tokens, w, a, "text", i, s))
    ends = ids.argmax(dim=1)
    feature = layer_norm(tokens[torch.arange(len(ids)), ends], w, "ln_final") @ w["text_projection"]
    unit: Tensor = feature / feature.norm(dim=-1, keepdim=True)
    return unit


def loss(
    pixels: Tensor,
    labels: Tensor,
    ids: Tensor,
    w: Weights,
    a: Weights,
    s: float,
    logit_scale: float,
) -> Tensor:
    images, texts = image_features(pixels, w, a, s), text_features(ids, w, a, s)
    logits = logit_scale * images @ texts.T
    return (torch.logsumexp(logits, dim=1) - logits[torch.arange(len(labels)), labels]).mean()


def gradients(
    pixels: Tensor,
    labels: Tensor,
    ids: Tensor,
    w: Weights,
    a: Weights,
    s: float,
    logit_scale: float,
) -> Weights:
    """Gradients as the optimizer must see them: the true ones over s."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in a.items()}
    loss(pixels, labels, ids, w, leaves, s, logit_scale).backward()  # type: ignore[no-untyped-call]
    return {name: value.grad / s for name, value in leaves.items() if value.grad is not None}
