"""Many clients trained in one batched pass.

Clients are small and the backbone is frozen, so the images of several clients go through it
together; each has its own adapter, loss, gradient and optimizer state, and sees the same batches
in the same order as alone. A client that has fewer steps drops out of the pass when it is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.adapters.mma import MultiModalAdapter
from pfedmma_deploy.adapters.stacked import StackedAdapter
from pfedmma_deploy.backbone.clip import Backbone, Images, Prefix
from pfedmma_deploy.backbone.flops import image_tokens
from pfedmma_deploy.backbone.texts import ClassTexts
from pfedmma_deploy.methods.base import Method, clip_loss, train_epochs
from pfedmma_deploy.methods.client_run import Batch, ClientRun, LocalTraining, Tensors
from pfedmma_deploy.types import Tower

CPU_BYTES = 20_000_000
"""Of the largest activation of a pass on a CPU, where one client alone does not exceed it: larger
ones leave the caches, and cost a page fault every 4 KB when they are taken from the system anew.
Cohorts of 4 instead of 1 make ViT-B/16 (10 MB per 4 images) 1.25 times slower, of 2 instead of 1
ViT-B/32 and pfedmma-tiny 1.04 and 1.2 times faster."""
GPU_SHARE = 0.5
"""Of the device's memory, for what a pass keeps for its gradients."""
PADDED = -100
"""Label of what is there to make the clients' batches of one size."""
KEPT_PER_TOKEN = 24
"""Numbers kept for the gradient per token, block and unit of width: inputs of the norms, queries,
keys, values, the mixture, and the MLP's two layers, four times as wide, with their activation."""


def is_stackable(method: Method, adapter: Adapter, options: LocalTraining) -> bool:
    """Whether clients of this method can train in one pass: plain epochs of plain SGD."""
    return (
        type(adapter) is MultiModalAdapter
        and method.local is train_epochs
        and method.loss is clip_loss
        and options.optimizer == "sgd"
    )


def cohort_size(backbone: Backbone, adapter: Adapter, images: int, texts: ClassTexts) -> int:
    """How many clients train together on this machine; at least 1.

    Args:
        backbone: what they are adapted on.
        adapter: of their method.
        images: of one client in a step.
        texts: the prompts of a step.
    """
    tokens: dict[Tower, int] = {
        "image": images * image_tokens(backbone),
        "text": len(texts.prompts) * backbone.prompt_length(texts.prompts),
    }
    if backbone.device.type == "cpu":
        # The MLP's first layer is the widest there is.
        widest = max(count * 4 * backbone.width(tower) for tower, count in tokens.items())
        return max(1, CPU_BYTES // (4 * widest))
    numbers = 0
    for tower, count in tokens.items():
        blocks = backbone.depth(tower) - adapter.first_block(backbone, tower)
        numbers += count * backbone.width(tower) * blocks * KEPT_PER_TOKEN
    memory = torch.cuda.get_device_properties(backbone.device).total_memory
    return max(1, int(GPU_SHARE * memory / (4 * numbers)))


def train_cohort(
    runs: Sequence[ClientRun], states: Sequence[Tensors]
) -> list[tuple[float, Tensors]]:
    """Train several clients together for the option's epochs.

    Args:
        runs: one per client, of one method and with one `adapter` between them, left alone.
        states: all tensors of each client's adapter; `runs[i].optimizer` is read and replaced.

    Returns:
        Mean loss and trained tensors of each client.
    """
    first = runs[0]
    assert isinstance(first.adapter, MultiModalAdapter)
    stack = StackedAdapter(first.adapter, states)
    momentum = _momentum(runs, stack)
    totals, counts = [0.0] * len(runs), [0] * len(runs)
    for step in zip_longest(*(run.batches() for run in runs)):
        active = [row for row, batch in enumerate(step) if batch is not None]
        losses = _losses(first, stack, active, [batch for batch in step if batch is not None])
        losses.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        _update(stack, momentum, active, first.options)
        for row, loss in zip(active, losses.tolist(), strict=True):
            totals[row], counts[row] = totals[row] + loss, counts[row] + 1
    if first.options.momentum > 0:
        for row, run in enumerate(runs):
            for name, value in momentum.items():
                run.optimizer[f"{name}/momentum_buffer"] = value[row].detach().cpu().clone()
    return [(totals[row] / counts[row], stack.state(row)) for row in range(len(runs))]


def _losses(
    run: ClientRun, stack: StackedAdapter, active: list[int], batches: list[Batch]
) -> Tensor:
    """Mean cross-entropy of each active client's batch, [K]."""
    backbone, clients = run.backbone, len(active)
    hook = stack.rows(active)
    size = max(len(batch.labels) for batch in batches)
    images = backbone.encode_image(_joined([b.pixels for b in batches], size), hook)
    texts = batches[0].texts
    prefix = texts.prefix
    if prefix is not None:
        prefix = replace(prefix, tokens=torch.cat([prefix.tokens] * clients))
    tokens = texts.prompts.repeat(clients, 1)
    features = backbone.encode_text(tokens, hook, prefix)
    names = features.view(clients, len(texts.names), -1)
    scores = batches[0].logit_scale * images.view(clients, size, -1) @ names.mT
    labels = torch.stack(
        [F.pad(b.labels, (0, size - len(b.labels)), value=PADDED) for b in batches]
    )
    each = F.cross_entropy(
        scores.flatten(0, 1),
        labels.to(scores.device).flatten(),
        reduction="none",
        ignore_index=PADDED,
    )
    counts = torch.tensor([len(batch.labels) for batch in batches], device=each.device)
    return each.view(clients, size).sum(1) / counts


def _joined(parts: Sequence[Images], size: int) -> Images:
    """The clients' images one after the other, each padded to `size` with its first one."""

    def padded(x: Tensor) -> Tensor:
        return torch.cat([x, x[:1].expand(size - len(x), *x.shape[1:])]) if len(x) < size else x

    first = parts[0]
    if isinstance(first, Prefix):
        return Prefix(
            torch.cat([padded(part.tokens) for part in parts if isinstance(part, Prefix)]),
            first.start,
        )
    return torch.cat([padded(part) for part in parts if isinstance(part, Tensor)])


def _momentum(runs: Sequence[ClientRun], stack: StackedAdapter) -> Tensors:
    """Momentum buffers of all clients, [K, ...]; zero where there is none yet."""
    return {
        name: torch.stack(
            [
                run.optimizer.get(f"{name}/momentum_buffer", torch.zeros_like(value[0])).to(value)
                for run in runs
            ]
        )
        for name, value in stack.values.items()
    }


@torch.no_grad()
def _update(
    stack: StackedAdapter, momentum: Tensors, active: list[int], options: LocalTraining
) -> None:
    """One step of SGD for the active clients: v = mu v + g + lambda w; w -= lr v."""
    whole = len(active) == len(next(iter(momentum.values())))
    for name, value in stack.values.items():
        assert value.grad is not None
        gradient = value.grad
        if whole:
            gradient.add_(value, alpha=options.weight_decay)
            momentum[name].mul_(options.momentum).add_(gradient)
            value.sub_(momentum[name], alpha=options.lr)
        else:
            rows = torch.tensor(active, device=value.device)
            step = gradient[rows] + options.weight_decay * value[rows]
            step += options.momentum * momentum[name][rows]
            momentum[name][rows] = step
            value[rows] = value[rows] - options.lr * step
        value.grad = None
