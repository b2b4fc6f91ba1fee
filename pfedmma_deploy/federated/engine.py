"""Where clients run. The algorithm is in `rounds`; an engine only moves states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.data.pixels import PixelLoader
from pfedmma_deploy.evaluation.accuracy import top1_accuracy
from pfedmma_deploy.federated.local import LocalTraining, Prompts, train_locally
from pfedmma_deploy.methods.base import Method, Update
from pfedmma_deploy.store.checkpoint import Checkpoint, ClientState
from pfedmma_deploy.types import ClientData, Scope


@dataclass(frozen=True)
class ClientReport:
    """What the server learns of a client's round: its update and two figures."""

    update: Update
    loss: float
    val_accuracy: float | None
    """Percent on the client's validation images; None where it has none."""


class Engine(Protocol):
    """Runs the local training of the selected clients."""

    def run_round(
        self, round: int, clients: Sequence[str], shared: dict[str, Tensor]
    ) -> Iterator[ClientReport]:
        """Send `shared` to the clients, let them train, yield what they send back."""
        ...


class InProcessEngine:
    """All clients one after the other in this process, their states on disk between rounds."""

    def __init__(
        self,
        backbone: Backbone,
        method: Method,
        adapter: Adapter,
        clients: Sequence[ClientData],
        pixels: PixelLoader,
        prompts: Prompts,
        options: LocalTraining,
        checkpoint: Checkpoint,
        seed: int,
    ) -> None:
        self.backbone = backbone
        self.method = method
        self.adapter = adapter
        self.clients = {client.id: (i, client) for i, client in enumerate(clients)}
        self.pixels = pixels
        self.prompts = prompts
        self.options = options
        self.checkpoint = checkpoint
        self.seed = seed
        self._initial = ClientState(local=adapter.tensors(Scope.LOCAL))

    def run_round(
        self, round: int, clients: Sequence[str], shared: dict[str, Tensor]
    ) -> Iterator[ClientReport]:
        """See `Engine`; every client's randomness is its own: (seed, round, client)."""
        for client in clients:
            index, data = self.clients[client]
            state = self.checkpoint.load_client(client) or self._initial
            self.adapter.load(state.local, shared)
            loss, momentum = train_locally(
                self.backbone,
                self.method,
                self.adapter,
                data.train,
                self.pixels,
                self.prompts,
                self.options,
                state.momentum,
                # index + 1: numpy takes [s, r] and [s, r, 0] for the same seed, and [s, r] samples.
                np.random.default_rng([self.seed, round, index + 1]),
            )
            new = ClientState(local=self.adapter.tensors(Scope.LOCAL), momentum=momentum)
            self.checkpoint.stage_client(client, round, new)
            update = Update(client, self.adapter.tensors(Scope.SHARED), len(data.train))
            yield ClientReport(update, loss, self._validate(data))

    def _validate(self, data: ClientData) -> float | None:
        """Accuracy on the client's validation images, with the adapter as just trained."""
        if not data.val:
            return None
        with torch.inference_mode():
            texts = self.backbone.encode_text(self.prompts.tokens, self.adapter.hook)
            pixels = torch.from_numpy(self.pixels.load(data.val))
            images = self.backbone.encode_image(pixels, self.adapter.hook)
        rows = torch.tensor([self.prompts.row[example.label] for example in data.val])
        return top1_accuracy(images, texts, rows)
