"""Where clients run. The algorithm is in `rounds`; an engine only moves states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pfedmma_deploy.adapters.base import KEPT, Adapter
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.backbone.images import ImageInputs
from pfedmma_deploy.federated.cohort import cohort_size, is_stackable, train_cohort
from pfedmma_deploy.federated.ledger import Ledger
from pfedmma_deploy.methods.base import Method, Update
from pfedmma_deploy.methods.client_run import ClientRun, LocalTraining, Prompts
from pfedmma_deploy.store.checkpoint import Checkpoint, ClientState
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
    """What the method has to say, for `rounds.jsonl`."""


class Engine(Protocol):
    """Runs the local training of the selected clients."""

    ledger: Ledger

    def run_round(
        self, round: int, clients: Sequence[str], server: dict[str, Tensor]
    ) -> Iterator[ClientReport]:
        """Send each client its part of `server`, let them train, yield what they send back."""
        ...


class InProcessEngine:
    """All clients in this process, their states on disk between rounds.

    A few at a time train in one pass where the method allows it (`federated.cohort`), else one
    after the other. Memory does not grow with the number of clients.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: Method,
        adapter: Adapter,
        clients: Sequence[ClientData],
        images: ImageInputs,
        prompts: Prompts,
        options: LocalTraining,
        checkpoint: Checkpoint,
        seed: int,
        together: bool = True,
    ) -> None:
        """Keep what all rounds need; with `together`, clients train in cohorts where they can."""
        self.backbone = backbone
        self.method = method
        self.adapter = adapter
        self.clients = {client.id: (i, client) for i, client in enumerate(clients)}
        self.images = images
        self.prompts = prompts
        self.options = options
        self.checkpoint = checkpoint
        self.seed = seed
        self._initial = ClientState(own=adapter.tensors(*KEPT))
        self._together = 1
        if together and is_stackable(method, adapter, options):
            most = min(options.batch_size, max(len(client.train) for client in clients))
            self._together = cohort_size(backbone, adapter, most, prompts.texts)
        self._common = adapter.tensors(Scope.SHARED)
        self.ledger = Ledger()

    def run_round(
        self, round: int, clients: Sequence[str], server: dict[str, Tensor]
    ) -> Iterator[ClientReport]:
        """See `Engine`; every client's randomness is its own: (seed, round, client)."""
        for first in range(0, len(clients), self._together):
            chosen = clients[first : first + self._together]
            with self.ledger.phase("prefixes"):
                self._keep_prefixes(chosen)
            work = [self._client_run(client, round, server) for client in chosen]
            if len(chosen) > 1:
                yield from self._train_together(work)
            else:
                yield self._train_alone(*work[0])

    def _client_run(
        self, client: str, round: int, server: dict[str, Tensor]
    ) -> tuple[ClientRun, dict[str, Tensor]]:
        """A client's part of the round, and all tensors that it starts from."""
        index, data = self.clients[client]
        state = self.checkpoint.load_client(client) or self._initial
        sent = self.method.distribute(server, client)
        received = self.method.download(sent, self.adapter, data)
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
            optimizer=dict(state.optimizer),
            # index + 1: numpy takes [s, r] and [s, r, 0] for the same seed, and [s, r] samples.
            rng=np.random.default_rng([self.seed, round, index + 1]),
            round=round,
        )
        return run, {**state.own, **received, **declined}

    def _train_alone(self, run: ClientRun, state: dict[str, Tensor]) -> ClientReport:
        self.adapter.load(state)
        with self.ledger.phase("train"):
            loss = self.method.local(run)
        return self._report(run, loss)

    def _train_together(
        self, work: Sequence[tuple[ClientRun, dict[str, Tensor]]]
    ) -> Iterator[ClientReport]:
        runs = [run for run, _ in work]
        with self.ledger.phase("train"):
            found = train_cohort(runs, [state for _, state in work])
        for run, (loss, tensors) in zip(runs, found, strict=True):
            self.adapter.load(tensors)
            yield self._report(run, loss)

    def _report(self, run: ClientRun, loss: float) -> ClientReport:
        """Stage the state that `adapter` holds after training, and say what goes to the server."""
        assert run.round is not None
        run.require_finite(loss)
        data = run.client
        new = ClientState(own=self.adapter.tensors(*KEPT), optimizer=run.optimizer)
        self.ledger.count(run)
        with self.ledger.phase("store"):
            self.checkpoint.stage_client(data.id, run.round, new)
        update = Update(data.id, self.method.upload(self.adapter, data), len(data.train))
        with self.ledger.phase("validate"):
            accuracy = self._validate(data)
        return ClientReport(update, loss, accuracy, payload(run.received), run.record)

    def _keep_prefixes(self, clients: Sequence[str]) -> None:
        """Make what the frozen blocks make of the clients' images, once for all rounds."""
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
