"""One client at work: what a method's local training has at hand, and the one optimisation loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.backbone.activation_cache import ImageInputs
from pfedmma_deploy.backbone.clip import Backbone, ClassTexts, Images
from pfedmma_deploy.config import Optimizer
from pfedmma_deploy.errors import TrainingError
from pfedmma_deploy.types import ClientData, Example, Scope

A = TypeVar("A", bound=Adapter)
Tensors = dict[str, Tensor]

OPTIMIZERS: Final[dict[str, tuple[type[torch.optim.Optimizer], tuple[str, ...]]]] = {
    "sgd": (torch.optim.SGD, ("momentum_buffer",)),
    "adam": (torch.optim.Adam, ("exp_avg", "exp_avg_sq", "step")),
    "adamw": (torch.optim.AdamW, ("exp_avg", "exp_avg_sq", "step")),
}
"""Optimizers by name, and the tensors that each keeps per parameter."""


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
    optimizer: Optimizer = "sgd"
    scopes: frozenset[Scope] = frozenset({Scope.LOCAL, Scope.SHARED})
    """Scopes that are trained; the others keep their values."""


@dataclass(frozen=True)
class Prompts:
    """The class names that a client learns against."""

    texts: ClassTexts
    row: dict[int, int]
    """Row of each label."""


@dataclass(frozen=True)
class Batch:
    """One step's inputs."""

    pixels: Images
    """uint8 [B, H, W, 3], or cached activations"""
    labels: Tensor
    """int64 [B], indices into the rows of `texts`"""
    texts: ClassTexts
    logit_scale: float
    received: Tensors = field(default_factory=dict)
    """What the server sent at the start of the round, by parameter name."""
    examples: Sequence[Example] = ()
    """The images' records: captions, domains."""


@dataclass
class ClientRun(Generic[A]):
    """One client's part of a round, or its personalization; `adapter` is trained in place."""

    backbone: Backbone
    adapter: A
    loss: Callable[[Backbone, A, Batch], Tensor]
    """The method's: a scalar."""
    client: ClientData
    images: ImageInputs
    prompts: Prompts
    options: LocalTraining
    received: Tensors
    optimizer: Tensors
    """State of the client's own optimizer as `name/slot`: read and replaced by `fit`."""
    rng: np.random.Generator
    state: Any = None
    """The method's `State` of this client: read and replaced by `Method.train_client`."""
    round: int | None = None
    """Counted from 0; None in personalization."""
    images_seen: int = 0
    """Training images so far, each time it was seen."""
    steps: int = 0
    """Batches so far."""
    remarks: dict[str, Any] = field(default_factory=dict)
    """What the method notes of this round for its line in `rounds.jsonl`; JSON-able."""

    def fit(
        self,
        loss: Callable[[Backbone, A, Batch], Tensor] | None = None,
        *,
        only: Collection[str] | None = None,
        epochs: int | None = None,
        steps: int | None = None,
        lr: float | None = None,
        optimizer: Optimizer | None = None,
        accumulate: int = 1,
    ) -> float:
        """Minimise a loss over the client's training images; returns its mean over the steps.

        Args:
            loss: default the method's.
            only: names of the parameters that are trained; default those of `options.scopes`.
            epochs: passes over the images; default the option's.
            steps: number of batches instead of epochs, starting over where the images end.
            lr: default the option's.
            optimizer: default the option's.
            accumulate: batches whose gradients are averaged into one update.
        """
        trained = self._require_grad(only)
        if not trained:
            return 0.0
        kind = optimizer or self.options.optimizer
        solver = self._solver(kind, trained, lr or self.options.lr)
        self.adapter.train()
        total, count = 0.0, 0
        with self._own_randomness():
            for batch in self.batches(epochs, steps):
                value = (loss or self.loss)(self.backbone, self.adapter, batch)
                (value / accumulate).backward()  # type: ignore[no-untyped-call]  # untyped in torch
                total, count = total + value.item(), count + 1
                if count % accumulate == 0:
                    solver.step()
                    solver.zero_grad()
        # Batches that were left over when the images ended still count.
        if count % accumulate:
            solver.step()
            solver.zero_grad()
        # Dropout off: what follows (validation, other phases) sees the model that is served.
        self.adapter.eval()
        self._keep_state(kind, trained, solver)
        return total / count

    @torch.no_grad()
    def held_out(self, loss: Callable[[Backbone, A, Batch], Tensor] | None = None) -> float:
        """Mean loss over the client's validation images, or its training images if it has none."""
        examples = self.client.val or self.client.train
        self.adapter.eval()
        total = 0.0
        for start in range(0, len(examples), self.options.batch_size):
            chosen = examples[start : start + self.options.batch_size]
            value = (loss or self.loss)(self.backbone, self.adapter, self.batch(chosen))
            total += float(value) * len(chosen)
        return total / len(examples)

    def require_finite(self, loss: float) -> None:
        """Raises `TrainingError` where the loss or a weight is no longer a finite number."""
        values = (value.detach().isfinite().all() for value in self.adapter.parameters())
        if math.isfinite(loss) and all(values):
            return
        where = "in its personalization" if self.round is None else f"in round {self.round + 1}"
        lr = self.options.lr
        precision = ", or without --autocast fp16" if self.backbone.precision == "fp16" else ""
        raise TrainingError(
            f"The training of client {self.client.id} diverged {where}: its loss came to {loss:g}. "
            f"The learning rate {lr:g} is probably too high: start again with a smaller one, such "
            f"as --lr {lr / 10:g}{precision}. What was stored before is as it was."
        )

    def batch(self, chosen: Sequence[Example], *, is_training: bool = False) -> Batch:
        """Some of the client's images; in training with its random transform."""
        start = self.adapter.first_block(self.backbone, "image")
        if is_training and self.options.random_transform:
            images = self.images.load_random(chosen, self.rng, start)
        else:
            images = self.images.load(chosen, start)
        return Batch(
            pixels=images,
            labels=torch.tensor([self.prompts.row[example.label] for example in chosen]),
            texts=self.prompts.texts,
            logit_scale=self.options.logit_scale,
            received=self.received,
            examples=chosen,
        )

    def batches(self, epochs: int | None = None, steps: int | None = None) -> Iterator[Batch]:
        """The batches of local training, in the order that `rng` decides; arguments as in `fit`."""
        epochs = epochs or self.options.epochs
        examples, size = self.client.train, self.options.batch_size
        done = 0
        while steps is None or done < steps:
            order = self.rng.permutation(len(examples))
            for start in range(0, len(order), size):
                if done == steps:
                    return
                chosen = [examples[i] for i in order[start : start + size]]
                self.steps, self.images_seen = self.steps + 1, self.images_seen + len(chosen)
                yield self.batch(chosen, is_training=True)
                done += 1
            epochs -= 1
            if steps is None and epochs == 0:
                return

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """torch's generator (dropout) replays with (seed, round, client), and is put back after."""
        device = self.backbone.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            # A spawned seed leaves the stream of `rng` as it is.
            sequence = self.rng.bit_generator.seed_seq
            assert isinstance(sequence, np.random.SeedSequence)
            torch.manual_seed(int(sequence.spawn(1)[0].generate_state(1, np.uint32)[0]))
            yield

    def _require_grad(self, only: Collection[str] | None) -> dict[str, torch.nn.Parameter]:
        scopes = self.adapter.scopes()
        trained = {}
        for name, parameter in self.adapter.named_parameters():
            chosen = scopes[name] in self.options.scopes if only is None else name in only
            parameter.requires_grad_(chosen)
            if chosen:
                trained[name] = parameter
        return trained

    def _solver(
        self, kind: str, trained: dict[str, torch.nn.Parameter], lr: float
    ) -> torch.optim.Optimizer:
        build, slots = OPTIMIZERS[kind]
        options: dict[str, Any] = {"lr": lr, "weight_decay": self.options.weight_decay}
        if kind == "sgd":
            options["momentum"] = self.options.momentum
        solver = build(trained.values(), **options)
        for name, parameter in trained.items():
            for slot in slots:
                if f"{name}/{slot}" in self.optimizer:
                    value = self.optimizer[f"{name}/{slot}"]
                    device = "cpu" if slot == "step" else parameter.device
                    solver.state[parameter][slot] = value.to(device, copy=True)
        return solver

    def _keep_state(
        self, kind: str, trained: dict[str, torch.nn.Parameter], solver: torch.optim.Optimizer
    ) -> None:
        for name, parameter in trained.items():
            for slot in OPTIMIZERS[kind][1]:
                value = solver.state[parameter].get(slot)
                if value is not None:
                    self.optimizer[f"{name}/{slot}"] = value.detach().cpu()
