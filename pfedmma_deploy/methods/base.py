"""What a method of federated personalization is: what is built, learned and averaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.backbone.clip import Backbone

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Update:
    """What a client sends to the server after its local training."""

    client: str
    shared: Tensors
    num_examples: int
    """n_i, the client's number of training images: its weight in the average."""


@dataclass(frozen=True)
class Batch:
    """One step's inputs."""

    pixels: Tensor
    """uint8 [B, H, W, 3]"""
    labels: Tensor
    """int64 [B], indices into the rows of `tokens`"""
    tokens: Tensor
    """int64 [C, context], one prompt per class name"""
    logit_scale: float


@dataclass(frozen=True)
class Method:
    """One paper: its citation, and the functions in which it differs from the others.

    Attributes:
        parameters: frozen dataclass of hyper-parameters; fields are named as the options.
        build: (backbone, parameters, generator) -> the adapter in its initial state, the same for
            every client.
        loss: (backbone, adapter, batch) -> scalar that a client minimises.
        aggregate: updates of one round -> new shared tensors.
    """

    name: str
    paper: str
    trained: str
    shared: str
    folds: bool
    """Whether the adapter can be written into the backbone's own weights exactly."""
    exportable: bool
    parameters: type[Any]
    build: Callable[[Backbone, Any, torch.Generator], Adapter]
    loss: Callable[[Backbone, Adapter, Batch], Tensor]
    aggregate: Callable[[Sequence[Update]], Tensors]

    def configure(self, options: Mapping[str, Any]) -> Any:
        """This method's hyper-parameters, read from options of the same names."""
        return self.parameters(**{f.name: options[f.name] for f in fields(self.parameters)})


def clip_loss(backbone: Backbone, adapter: Adapter, batch: Batch) -> Tensor:
    """Cross-entropy over the class prompts, both towers adapted; a scalar."""
    images = backbone.encode_image(batch.pixels, adapter.hook)
    texts = backbone.encode_text(batch.tokens, adapter.hook)
    return F.cross_entropy(batch.logit_scale * images @ texts.T, batch.labels.to(images.device))


def weighted_mean(updates: Sequence[Update]) -> Tensors:
    """Mean of the shared tensors weighted by `num_examples`, summed in float64 in client order.

    Raises:
        ValueError: no update, or updates that hold different tensors; the message names one.
    """
    if not updates:
        raise ValueError("no client sent an update")
    ordered = sorted(updates, key=lambda update: update.client)
    total = sum(update.num_examples for update in ordered)
    names = ordered[0].shared.keys()
    for update in ordered:
        for name in sorted(names ^ update.shared.keys()):
            raise ValueError(f"client {update.client} and {ordered[0].client} disagree on {name}")
    return {
        name: torch.stack(
            [update.shared[name].double() * (update.num_examples / total) for update in ordered]
        )
        .sum(0)
        .to(ordered[0].shared[name].dtype)
        for name in names
    }
