"""What every method is tried on: a tiny backbone, three classes, five images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pfedmma_deploy.backbone.clip import Backbone, ClassTexts, class_texts
from pfedmma_deploy.methods.base import Batch, Method
from pfedmma_deploy.methods.pfedmma import PFedMMA
from tests.tinyclip import tiny_backbone

NAMES = ("cat", "large dog", "ship")
TEMPLATE = "a photo of a {}."
LOGIT_SCALE = 20.0


def texts() -> ClassTexts:
    return class_texts(tiny_backbone(), NAMES, TEMPLATE)


def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8, generator=generator)


def batch(received: dict[str, Tensor] | None = None) -> Batch:
    labels = torch.tensor([0, 1, 2, 1, 0])
    return Batch(pixels(), labels, texts(), LOGIT_SCALE, received=received or {})


def build(method: type[Method[Any, Any]], seed: int = 0, **parameters: Any) -> Any:
    """An adapter of a method with these hyper-parameters."""
    generator = torch.Generator().manual_seed(seed)
    return method.configure(parameters).build(tiny_backbone(), generator)


clip_loss: Callable[[Backbone, Any, Batch], Tensor] = PFedMMA().loss
"""Cross-entropy over the class names: what most methods minimise."""


def words(text: str) -> Tensor:
    """The token embeddings of a text without its start and end, [T, d]."""
    backbone = tiny_backbone()
    ids = backbone.tokenize([text])
    return backbone.embed_tokens(ids)[0, 1 : int(ids.argmax())].detach()


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """By its definition."""
    rows = torch.arange(len(labels))
    return (torch.logsumexp(scores, dim=1) - scores[rows, labels]).mean()
