"""What of a client's adapter goes into an exported graph: plain tensors under agreed names.

A graph holds one row per client of every tensor (`pfedmma_deploy.export`). pFedMMA's adapter keeps
its own names; everything else is named `{tower}.{bank}`, laid out as the graph takes it:

    {tower}.blocks.{b}.low_rank.{q,v}_down [d, r]   and   _up [r, d]
    text.context.vectors [M, d]
    image.frame.pixels [3, S, S]
    image.head.*, see `pfedmma_deploy.export.feature_banks`
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pfedmma_deploy.types import TOWERS

__all__ = [
    "BANK",
    "PLACEHOLDER",
    "GraphForm",
    "below",
    "context_form",
    "is_part",
    "low_rank_form",
    "multimodal_form",
]

BANK = re.compile(r"blocks\.\d+\.low_rank\.\w+|(?:context|frame|head)\.\w+")
"""Names inside a tower's graph of what is not pFedMMA's adapter."""

_LAYER = re.compile(r"(?:image|text)\.\d+\.")
PLACEHOLDER = "*"
"""Stands in a prompt where a learned vector takes the place of a word; one token of CLIP's."""


@dataclass(frozen=True)
class GraphForm:
    """One client as an exported graph takes it."""

    tensors: Mapping[str, Tensor]
    """One client's row of every bank, by name."""
    settings: Mapping[str, Any]
    """`kind` and what else the clients of a bundle have in common, for its manifest; JSON-able."""


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with a prefix, by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def is_part(name: str) -> bool:
    """Whether a client's tensor is named `{tower}.{bank}`; else it is one of pFedMMA's adapter."""
    tower, _, bank = name.partition(".")
    return tower in TOWERS and BANK.fullmatch(bank) is not None


def multimodal_form(tensors: Mapping[str, Tensor], bottleneck_dim: int, scale: float) -> GraphForm:
    """pFedMMA's adapter, as `MultiModalAdapter` names it.

    Raises:
        KeyError: a layer is missing; its name.
    """
    layers = {match[0] for match in map(_LAYER.match, tensors) if match}
    pairs = max((sum(layer.startswith(tower) for layer in layers) for tower in TOWERS), default=0)
    paths = [f"{layer}{part}" for layer in sorted(layers) for part in ("down", "up")]
    paths += [f"pair.{pair}" for pair in range(max(1, pairs))]
    for path in paths:
        for kind in ("weight", "bias"):
            tensors[f"{path}.{kind}"]
    return GraphForm(
        tensors, {"kind": "multimodal", "bottleneck_dim": bottleneck_dim, "scale": scale}
    )


def low_rank_form(
    products: Mapping[str, Sequence[tuple[Tensor, Tensor]]], scale: float
) -> GraphForm:
    """Low-rank changes of queries and values.

    Args:
        products: `{tower}.{block}.{q,v}` -> pairs A [r, d], B [d, r], whose products are summed.
        scale: factor on the sum.
    """
    tensors: dict[str, Tensor] = {}
    for name, pairs in products.items():
        tower, block, which = name.split(".")
        bank = f"{tower}.blocks.{block}.low_rank.{which}"
        # A sum of products is one product of the factors side by side.
        tensors[f"{bank}_down"] = torch.cat([a for a, _ in pairs]).T.contiguous()
        tensors[f"{bank}_up"] = torch.cat([b for _, b in pairs], dim=1).T.contiguous()
    rank = next(value.shape[1] for name, value in tensors.items() if name.endswith("_down"))
    return GraphForm(tensors, {"kind": "low-rank", "rank": rank, "scale": scale})


def context_form(context: Tensor) -> GraphForm:
    """A learned context [M, d] before every class name."""
    vectors = len(context)
    prompt = " ".join([*[PLACEHOLDER] * vectors, "{}."])
    settings = {"kind": "context", "vectors": vectors, "prompt": prompt}
    return GraphForm({"text.context.vectors": context}, settings)
