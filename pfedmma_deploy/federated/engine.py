"""Where clients run. The algorithm is in `rounds`; an engine only moves states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pfedmma_deploy.adapters.base import KEPT, Adapter
from pfedmma_deploy.backbone.activation_cache import ImageInputs
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.federated.client_batching import clients_per_pass, train_together
from pfedmma_deploy.federated.cost import RoundCost
from pfedmma_deploy.federated.session import Session
from pfedmma_deploy.methods.base import Method, Tensors, Update, state_to_dict
from pfedmma_deploy.methods.client_run import ClientRun, LocalTraining, Prompts
from pfedmma_deploy.store.checkpoint import ClientState
from pfedmma_deploy.types import ClientData, Scope


@dataclass(frozen=True)
class ClientReport:
    """What the server learns of a client's round: its update and a few figures."""

    update: Update
    loss: float
    val_accuracy: float | None
    """Percent on the client's validation images; None where it has none."""
    bytes_down: int
    """Payload of what the client received."""
    remarks: dict[str, Any] = field(default_factory=dict)
    """The method's remarks, for `rounds.jsonl`."""


class Cost(Protocol):
    """What an engine has to say of a round beside its reports."""

    def take(self) -> dict[str, object]:
        """Figures since the last call, for the round's line in `rounds.jsonl`."""
        ...


class StateStore(Protocol):
    """Where clients' states are between rounds; a run's `Checkpoint` is one."""

    def load_client(self, client: str) -> ClientState | None:
        """A client's state, or None where it has not trained yet."""
        ...

    def stage_client(self, client: str, round: int, state: ClientState) -> None:
        """Write a client's new state; whether it counts is the server's to say."""
        ...


class Engine(Protocol):
    """Runs the local training of the selected clients."""

    @property
    def cost(self) -> Cost:
        """What rounds cost."""
        ...

    def run_round(
        self, round: int, clients: Sequence[str], server: Tensors
    ) -> Iterator[ClientReport]:
        """Send each client its part of `server`, let them train, yield what they send back.

        In the order of `clients`. One that does not answer, or whose answer is refused, is left
        out.
        """
        ...


class InProcessEngine:
    """All clients in this process, their states on disk between rounds.

    A few at a time train in one pass where the method allows it (`federated.client_batching`), else
    one after the other. Memory does not grow with the number of clients.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: Method[Any, Any],
        adapter: Adapter,
        clients: Sequence[ClientData],
        images: ImageInputs,
        prompts: Prompts,
        options: LocalTraining,
        checkpoint: StateStore,
        seed: int,
        client_batching: bool = True,
        first_index: int = 0,
    ) -> None:
        """Keep what all rounds need.

        `first_index` is the place of the first of `clients` in the federation, for its randomness.
        """
        self.backbone = backbone
        self.method = method
        self.adapter = adapter
        self.clients = {client.id: (i, client) for i, client in enumerate(clients, first_index)}
        self.images = images
        self.prompts = prompts
        self.options = options
        self.checkpoint = checkpoint
        self.seed = seed
        self.cost = RoundCost()
        self._initial = ClientState(own=adapter.tensors(*KEPT))
        self._common = adapter.tensors(Scope.SHARED)
        self._per_pass = 1
        if client_batching:
            most = min(options.batch_size, max(len(client.train) for client in clients))
            self._per_pass = clients_per_pass(
                method, backbone, adapter, options, most, prompts.texts
            )

    @classmethod
    def of(
        cls,
        session: Session,
        adapter: Adapter,
        states: StateStore,
        *,
        client_batching: bool,
        first_index: int = 0,
    ) -> InProcessEngine:
        """The engine of a session's clients; arguments as of the class."""
        return cls(
            backbone=session.backbone,
            method=session.method,
            adapter=adapter,
            clients=session.federation.clients,
            images=session.images,
            prompts=session.class_prompts(adapter, session.federation.base),
            options=session.local_training(),
            checkpoint=states,
            seed=session.config.seed,
            client_batching=client_batching,
            first_index=first_index,
        )

    def run_round(
        self, round: int, clients: Sequence[str], server: Tensors
    ) -> Iterator[ClientReport]:
        """See `Engine`; every client's randomness is its own: (seed, round, client)."""
        for first in range(0, len(clients), self._per_pass):
            chosen = clients[first : first + self._per_pass]
            sent = [self.method.distribute(server, client) for client in chosen]
            if len(chosen) == 1:
                yield self.train_client(round, chosen[0], sent[0])
                continue
            with self.cost.phase("prefixes"):
                self._cache_activations(chosen)
            work = [
                self._client_run(client, round, part)
                for client, part in zip(chosen, sent, strict=True)
            ]
            yield from self._train_together(work)

    def train_client(self, round: int, client: str, sent: Tensors) -> ClientReport:
        """One client's part of a round, from what the server sent it; its new state is staged."""
        with self.cost.phase("prefixes"):
            self._cache_activations([client])
        run, tensors = self._client_run(client, round, sent)
        self.method.load_client(self.adapter, tensors, run.state)
        with self.cost.phase("train"):
            loss = self.method.train_client(run)
        return self._report(run, loss)

    def _client_run(
        self, client: str, round: int, sent: Tensors
    ) -> tuple[ClientRun[Adapter], Tensors]:
        """A client's part of the round, and all tensors that it starts from."""
        index, data = self.clients[client]
        stored = self.checkpoint.load_client(client) or self._initial
        own, state = self.method.read_state(stored.own, stored.state)
        received = self.method.download(sent, self.adapter, data)
        # What a client declines has the common initial value there.
        declined = {name: self._common[name] for name in sent if name not in received}
        run = ClientRun(
            backbone=self.backbone,
            adapter=self.adapter,
            loss=self.method.loss,
            client=data,
            images=self.images,
            prompts=self.prompts,
            options=self.options,
            received=received,
            optimizer=dict(stored.optimizer),
            # index + 1: numpy takes [s, r] and [s, r, 0] for the same seed, and [s, r] samples.
            rng=np.random.default_rng([self.seed, round, index + 1]),
            state=state,
            round=round,
        )
        return run, {**own, **received, **declined}

    def _train_together(
        self, work: Sequence[tuple[ClientRun[Adapter], Tensors]]
    ) -> Iterator[ClientReport]:
        runs = [run for run, _ in work]
        with self.cost.phase("train"):
            found = train_together(runs, [tensors for _, tensors in work])
        for run, (loss, tensors) in zip(runs, found, strict=True):
            self.method.load_client(self.adapter, tensors, run.state)
            yield self._report(run, loss)

    def _report(self, run: ClientRun[Adapter], loss: float) -> ClientReport:
        """Stage the state that `adapter` holds after training, and say what goes to the server."""
        assert run.round is not None
        run.require_finite(loss)
        data = run.client
        new = ClientState(
            own=self.adapter.tensors(*KEPT),
            optimizer=run.optimizer,
            state=state_to_dict(run.state) or None,
        )
        self.cost.count(run)
        with self.cost.phase("store"):
            self.checkpoint.stage_client(data.id, run.round, new)
        update = Update(data.id, self.method.upload(self.adapter, data), len(data.train))
        with self.cost.phase("validate"):
            accuracy = self._validate(data)
        remarks = {**run.remarks, **self.method.remarks(self.adapter)}
        return ClientReport(update, loss, accuracy, payload(run.received), remarks)

    def _cache_activations(self, clients: Sequence[str]) -> None:
        """Compute the frozen blocks' activations of the clients' images, once for all rounds."""
        start = self.adapter.first_block(self.backbone, "image")
        chosen = [self.clients[client][1] for client in clients]
        train = [example for data in chosen for example in data.train]
        self.images.keep(train, start, is_random=self.options.random_transform)
        self.images.keep([example for data in chosen for example in data.val], start)

    @torch.inference_mode()
    def _validate(self, data: ClientData) -> float | None:
        """Accuracy on the client's validation images, with the adapter as just trained."""
        if not data.val:
            return None
        rows = torch.tensor([self.prompts.row[example.label] for example in data.val])
        start = self.adapter.first_block(self.backbone, "image")
        texts = self.adapter.encode_text(self.backbone, self.prompts.texts)
        images = self.adapter.encode_image(self.backbone, self.images.load(data.val, start))
        scores = self.adapter.logits(images, texts, self.options.logit_scale)
        return float(scores.argmax(dim=1).eq(rows.to(scores.device)).double().mean() * 100)


def payload(tensors: dict[str, Tensor]) -> int:
    """Bytes of the tensors themselves: what travels."""
    return sum(value.numel() * value.element_size() for value in tensors.values())


def traffic(
    method: Method[Any, Any], adapter: Adapter, clients: Sequence[ClientData]
) -> dict[str, int]:
    """Bytes `up` and `down` of the first client in a round, once every client has taken part.

    Before that a method whose server passes clients' states on has less to send. A server that
    holds no clients' data reckons with a client that has nothing.
    """
    clients = clients or (ClientData("", (), (), (), ()),)
    server = method.start(adapter, [client.id for client in clients])
    aggregator = method.aggregator()
    for client in clients:
        server = aggregator.combine([Update(client.id, method.upload(adapter, client), 1)], server)
    first = clients[0]
    received = method.download(method.distribute(server, first.id), adapter, first)
    return {"up": payload(method.upload(adapter, first)), "down": payload(received)}
