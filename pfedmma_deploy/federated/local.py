"""Local training: what happens on one client between receiving and sending."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.data.pixels import PixelLoader
from pfedmma_deploy.methods.base import Batch, Method
from pfedmma_deploy.types import Example, Scope


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains; the names are those of the options."""

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    random_transform: bool
    logit_scale: float
    scopes: frozenset[Scope] = frozenset({Scope.LOCAL, Scope.SHARED})
    """Scopes that are trained; the others keep their values."""


@dataclass(frozen=True)
class Prompts:
    """The class prompts that a client learns against."""

    tokens: Tensor
    """int64 [C, context], one row per class name"""
    row: dict[int, int]
    """Row of each label."""


def train_locally(
    backbone: Backbone,
    method: Method,
    adapter: Adapter,
    examples: Sequence[Example],
    pixels: PixelLoader,
    prompts: Prompts,
    options: LocalTraining,
    momentum: dict[str, Tensor],
    rng: np.random.Generator,
) -> tuple[float, dict[str, Tensor]]:
    """Train `adapter` in place by SGD with momentum, for `options.epochs` passes over `examples`.

    The optimizer's state is the client's own: it comes in as `momentum` and its successor goes out.

    Returns:
        Mean loss over all steps, and the momentum buffers by parameter name.
    """
    scopes = adapter.scopes()
    trained = {n: p for n, p in adapter.named_parameters() if scopes[n] in options.scopes}
    for name, parameter in adapter.named_parameters():
        parameter.requires_grad_(name in trained)
    optimizer = torch.optim.SGD(
        trained.values(),
        lr=options.lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
    )
    for name, parameter in trained.items():
        if name in momentum:
            buffer = momentum[name].to(parameter.device, copy=True)
            optimizer.state[parameter]["momentum_buffer"] = buffer
    total, steps = 0.0, 0
    for _ in range(options.epochs):
        order = rng.permutation(len(examples))
        for start in range(0, len(order), options.batch_size):
            chosen = [examples[i] for i in order[start : start + options.batch_size]]
            batch = _batch(chosen, pixels, prompts, options, rng)
            loss = method.loss(backbone, adapter, batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            total, steps = total + loss.item(), steps + 1
    buffers = {
        name: optimizer.state[parameter]["momentum_buffer"].detach().cpu()
        for name, parameter in trained.items()
        if optimizer.state[parameter].get("momentum_buffer") is not None
    }
    return total / steps, buffers


def _batch(
    chosen: Sequence[Example],
    pixels: PixelLoader,
    prompts: Prompts,
    options: LocalTraining,
    rng: np.random.Generator,
) -> Batch:
    array = pixels.load_random(chosen, rng) if options.random_transform else pixels.load(chosen)
    return Batch(
        pixels=torch.from_numpy(array),
        labels=torch.tensor([prompts.row[example.label] for example in chosen]),
        tokens=prompts.tokens,
        logit_scale=options.logit_scale,
    )
