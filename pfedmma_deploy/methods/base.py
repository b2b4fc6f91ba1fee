"""What a method of federated personalization is: what is built, learned and averaged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.adapters.graph_form import GraphForm
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.config import Scalar
from pfedmma_deploy.errors import UsageError, nearest
from pfedmma_deploy.methods.client_run import Batch, ClientRun, Loss, Tensors
from pfedmma_deploy.types import ClientData, Scope

__all__ = [
    "Batch",
    "ClientRun",
    "Loss",
    "Method",
    "Tensors",
    "Update",
    "clip_logits",
    "clip_loss",
    "mean",
    "send_all",
    "shared_of_adapter",
    "start_shared",
    "take_all",
    "train_epochs",
    "uniform_mean",
    "weighted_mean",
]


@dataclass(frozen=True)
class Update:
    """What a client sends to the server after its local training."""

    client: str
    shared: Tensors
    num_examples: int
    """n_i, the client's number of training images: its weight in the average."""


def clip_logits(backbone: Backbone, adapter: Adapter, batch: Batch) -> Tensor:
    """Class scores [B, C] of a batch."""
    images = adapter.encode_image(backbone, batch.pixels)
    texts = adapter.encode_text(backbone, batch.texts)
    return adapter.logits(images, texts, batch.logit_scale)


def clip_loss(backbone: Backbone, adapter: Adapter, batch: Batch) -> Tensor:
    """Cross-entropy over the class names; a scalar."""
    scores = clip_logits(backbone, adapter, batch)
    return F.cross_entropy(scores, batch.labels.to(scores.device))


def train_epochs(run: ClientRun) -> float:
    """Local training as most methods have it: the loss, minimised for the option's epochs."""
    return run.fit()


def start_shared(adapter: Adapter, clients: Sequence[str]) -> Tensors:
    """The server's first state: the shared tensors of the common initial adapter."""
    return adapter.tensors(Scope.SHARED)


def send_all(server: Tensors, client: str) -> Tensors:
    """Every client receives the server's whole state."""
    return server


def take_all(sent: Tensors, adapter: Adapter, client: ClientData) -> Tensors:
    """A client takes everything that the server has for it."""
    return sent


def shared_of_adapter(adapter: Adapter, client: ClientData) -> Tensors:
    """What a client uploads: its shared tensors."""
    return adapter.tensors(Scope.SHARED)


def weighted_mean(updates: Sequence[Update], server: Tensors | None = None) -> Tensors:
    """Mean of the shared tensors weighted by `num_examples` (see `mean`)."""
    return mean(updates, [update.num_examples for update in updates])


def uniform_mean(updates: Sequence[Update], server: Tensors | None = None) -> Tensors:
    """Mean of the shared tensors, every client counting the same (see `mean`)."""
    return mean(updates, [1] * len(updates))


def mean(updates: Sequence[Update], weights: Sequence[int]) -> Tensors:
    """Weighted mean of the shared tensors, summed in float64 in client order.

    Raises:
        ValueError: no update, or updates that hold different tensors; the message names one.
    """
    if not updates:
        raise ValueError("no client sent an update")
    ordered = sorted(zip(updates, weights, strict=True), key=lambda pair: pair[0].client)
    total = sum(weights)
    first = ordered[0][0]
    for update, _ in ordered:
        for name in sorted(first.shared.keys() ^ update.shared.keys()):
            raise ValueError(f"client {update.client} and {first.client} disagree on {name}")
    return {
        name: torch.stack([update.shared[name].double() * (w / total) for update, w in ordered])
        .sum(0)
        .to(value.dtype)
        for name, value in first.shared.items()
    }


@dataclass(frozen=True)
class Method:
    """One paper: its citation, and the functions in which it differs from the others.

    Attributes:
        trained, shared: what a client trains, and what of it travels; for people.
        folds: whether a client's model is plain CLIP with other weights, exactly.
        graph: (all of a client's tensors, parameters) -> what of them an exported graph takes; it
            raises `KeyError` with the name of a tensor that is missing. None where `pfedmma export`
            cannot write the clients as ONNX.
        obstacle: why not, as a sentence.
        parameters: frozen dataclass of hyper-parameters, fields mapped to the paper's symbols; it
            raises `UsageError` on a value out of range.
        build: (backbone, parameters, generator) -> the adapter in its initial state, the same for
            every client.
        loss: (backbone, adapter, batch) -> scalar that a client minimises.
        local: what a client does with a round; returns its mean training loss.
        personalize: what a client does after the federation; likewise.
        is_two_stage: whether the paper's own model is the one after `personalize`.
        upload: (adapter, client) -> what the client sends.
        start: (initial adapter, client ids) -> the server's state before the first round.
        aggregate: (updates of one round, server's state) -> its next state.
        distribute: (server's state, client id) -> what that client receives: shared parameters of
            its adapter, and frozen ones where the server supplies them.
        download: (what the server has for a client, its adapter, its data) -> what of it this
            client takes; the rest keeps its initial value there.
        defaults: options whose default for this method is not pFedMMA's.
    """

    name: str
    paper: str
    trained: str
    shared: str
    parameters: type[Any]
    build: Callable[[Backbone, Any, torch.Generator], Adapter]
    folds: bool = False
    graph: Callable[[Tensors, Any], GraphForm] | None = None
    obstacle: str = ""
    loss: Loss = clip_loss
    local: Callable[[ClientRun], float] = train_epochs
    personalize: Callable[[ClientRun], float] = train_epochs
    is_two_stage: bool = False
    upload: Callable[[Adapter, ClientData], Tensors] = shared_of_adapter
    start: Callable[[Adapter, Sequence[str]], Tensors] = start_shared
    aggregate: Callable[[Sequence[Update], Tensors], Tensors] = weighted_mean
    distribute: Callable[[Tensors, str], Tensors] = send_all
    download: Callable[[Tensors, Adapter, ClientData], Tensors] = take_all
    defaults: Mapping[str, Scalar] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def exportable(self) -> bool:
        """Whether `pfedmma export` can write its clients as ONNX."""
        return self.graph is not None

    def configure(self, given: Mapping[str, Scalar]) -> Any:
        """This method's hyper-parameters: `given` ones over the defaults.

        Raises:
            UsageError: an unknown name, a value of another type, or one out of range.
        """
        known = {f.name: f for f in fields(self.parameters)}
        values: dict[str, Scalar] = {}
        for name, value in given.items():
            if name not in known:
                names = ", ".join(known) or "none"
                raise UsageError(
                    f"{self.name} has no hyper-parameter {name!r}{nearest(name, known)} "
                    f"(it has: {names})."
                )
            default = known[name].default
            assert default is not MISSING, f"{self.name}.{name} needs a default"
            values[name] = _typed(self.name, name, value, default)
        return self.parameters(**values)


def _typed(method: str, name: str, value: Scalar, default: Scalar) -> Scalar:
    """`value` as the type of the default; whole numbers pass as floats."""
    kind = type(default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    good = type(value) is kind
    if good and isinstance(value, float):
        good = math.isfinite(value)
    if not good:
        expected = {bool: "true or false", int: "a whole number", float: "a number"}
        raise UsageError(f"{method}: {name} must be {expected.get(kind, 'a text')}, not {value!r}.")
    return value
