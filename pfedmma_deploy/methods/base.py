"""What a method of federated personalization is: what is built, learned and averaged.

A paper is one file here with one subclass of `Method`, which holds the paper's hyper-parameters and
overrides what the paper does differently from the defaults: build a shared and a local part, train
all of it on cross-entropy for some epochs, send what is shared, average it, give it to everybody.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.backbone.blocks import BlockHook
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.config import Scalar
from pfedmma_deploy.methods.aggregation import Aggregator, Tensors, Update, get_aggregator
from pfedmma_deploy.methods.client_run import Batch, ClientRun
from pfedmma_deploy.types import ClientData, Scope
from pfedmma_deploy.validation import check, construct

__all__ = [
    "Batch",
    "ClientRun",
    "Method",
    "Parameters",
    "Tensors",
    "Update",
    "clip_logits",
    "divergence",
    "hooked_logits",
]

A = TypeVar("A", bound=Adapter)
P = TypeVar("P")
NO_DEFAULTS: Mapping[str, Scalar] = MappingProxyType({})


@dataclass(frozen=True)
class Parameters:
    """Hyper-parameters of a method; this class has none.

    Annotations say what a field may be; `UsageError` names the first that is something else.
    """

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class NoState:
    """Nothing: weights and optimizer are all that a client keeps between rounds."""


class Method(ABC, Generic[A, P]):
    """One paper, with its hyper-parameters.

    Class attributes:
        trained, shared: what a client trains, and what of it travels; for people.
        Parameters: frozen dataclass of hyper-parameters, fields mapped to the paper's symbols.
        State: frozen dataclass of what a client keeps between rounds that is neither weight nor
            optimizer; plain JSON values.
        defaults: options whose default for this method is not pFedMMA's.
        rule: the paper's aggregation, a name in `AGGREGATORS`.
        merges: whether a client's model is plain CLIP with other weights, exactly.
        merge_blocker: why not, where there is more to say than what is trained; a sentence's start.
        is_two_stage: whether the paper's own model is the one after `personalize`.
        is_trained: whether there is anything to train.
        export_blocker: why `pfedmma export` cannot write the clients as ONNX, as a clause; empty
            where it can.
        is_batchable: whether `loss` may be computed for several clients in one pass by
            `torch.func.vmap`: no control flow that depends on values, no random numbers.

    Example:
        >>> from pfedmma_deploy import Method
        >>> from pfedmma_deploy.methods.pfedmma import PFedMMA
        >>> issubclass(PFedMMA, Method), PFedMMA.rule, PFedMMA().parameters.bottleneck_dim
        (True, 'mean', 32)
        >>> class UniformMMA(PFedMMA):
        ...     name, rule = "uniform-mma", "uniform-mean"
        >>> UniformMMA().aggregator()
        Mean(weighting='uniform')
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    trained: ClassVar[str]
    shared: ClassVar[str]
    Parameters: ClassVar[type[Any]] = Parameters
    State: ClassVar[type[Any]] = NoState
    defaults: ClassVar[Mapping[str, Scalar]] = NO_DEFAULTS
    rule: ClassVar[str] = "mean"
    merges: ClassVar[bool] = False
    merge_blocker: ClassVar[str] = ""
    is_two_stage: ClassVar[bool] = False
    is_trained: ClassVar[bool] = True
    export_blocker: ClassVar[str] = ""
    is_batchable: ClassVar[bool] = True

    def __init__(self, parameters: P | None = None) -> None:
        self.parameters: P = self.Parameters() if parameters is None else parameters

    @classmethod
    def configure(cls, given: Mapping[str, Scalar]) -> Self:
        """The method with `given` hyper-parameters over the defaults.

        Raises:
            UsageError: an unknown name, a value of another type, or one out of range.
        """
        return cls(construct(cls.Parameters, given, cls.name))

    # What a client has.

    @abstractmethod
    def build(self, backbone: Backbone, generator: torch.Generator) -> A:
        """The adapter in its initial state, the same for every client."""

    def initial_state(self) -> Any:
        """A client's `State` before its first round."""
        return self.State()

    def read_state(self, tensors: Tensors, stored: Mapping[str, Any] | None) -> tuple[Tensors, Any]:
        """A client's tensors and `State` as a run stored them; None was written by version 0.1."""
        return tensors, self.State(**stored) if stored else self.initial_state()

    def load_client(self, adapter: A, tensors: Tensors, state: Any) -> None:
        """Put a client into the adapter. Raises `ValueError` naming a tensor that does not fit."""
        adapter.load(tensors)

    # What a client does.

    def loss(self, backbone: Backbone, adapter: A, batch: Batch) -> Tensor:
        """What a client minimises, a scalar: by default cross-entropy over the class names."""
        scores = clip_logits(backbone, adapter, batch)
        return F.cross_entropy(scores, batch.labels.to(scores.device))

    def train_client(self, run: ClientRun[A]) -> float:
        """A client's part of a round; returns its mean training loss.

        By default the loss is minimised for the option's epochs. `run.state` is read and replaced.
        """
        return run.fit()

    def remarks(self, adapter: A) -> dict[str, Any]:
        """What is worth noting of a client after its round, for `rounds.jsonl`; JSON-able."""
        return {}

    def personalize(self, run: ClientRun[A]) -> float:
        """What a client does after the federation; by default the same as in a round."""
        return self.train_client(run)

    # What travels.

    def upload(self, adapter: A, client: ClientData) -> Tensors:
        """What the client sends: by default its shared tensors."""
        return adapter.tensors(Scope.SHARED)

    def start(self, adapter: A, clients: Sequence[str]) -> Tensors:
        """The server's state before the first round: by default the initial shared tensors."""
        return adapter.tensors(Scope.SHARED)

    def aggregator(self, rule: str | None = None) -> Aggregator:
        """What the server does with updates: the paper's rule, or the one called `rule`.

        Raises:
            UsageError: there is no such rule, or the method does not leave the choice.
        """
        return get_aggregator(rule or self.rule)

    def distribute(self, server: Tensors, client: str) -> Tensors:
        """What the server sends a client: by default its whole state.

        Shared parameters of the adapter, and frozen ones where the server supplies them.
        """
        return server

    def download(self, sent: Tensors, adapter: A, client: ClientData) -> Tensors:
        """What of it this client takes, by default all; the rest keeps its initial value there."""
        return sent


def clip_logits(backbone: Backbone, adapter: Adapter, batch: Batch) -> Tensor:
    """Class scores [B, C] of a batch."""
    images = adapter.encode_image(backbone, batch.pixels)
    texts = adapter.encode_text(backbone, batch.texts)
    return adapter.logits(images, texts, batch.logit_scale)


def hooked_logits(backbone: Backbone, hook: BlockHook, batch: Batch) -> Tensor:
    """Class scores [B, C] of the backbone with a hook on both towers."""
    images = backbone.encode_image(batch.pixels, hook)
    texts = backbone.encode_text(batch.texts.prompts, hook, batch.texts.activations)
    return batch.logit_scale * images @ texts.T


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of two sets of scores [B, C], mean over the batch.

    Temperature 1; the teacher gets no gradient.
    """
    log_student, log_teacher = student.log_softmax(dim=-1), teacher.detach().log_softmax(dim=-1)
    # Written out, because `torch.func.vmap` has no rule for `F.kl_div`.
    return (log_teacher.exp() * (log_teacher - log_student)).sum(dim=-1).mean()


def state_to_dict(state: Any) -> dict[str, Any]:
    """A client's `State` as plain values; empty where there is none."""
    return asdict(state)
