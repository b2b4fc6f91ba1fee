"""Many clients trained in one batched pass.

Clients are small and the backbone is frozen, so the images of several clients go through it
together: `torch.func.vmap` over the method's own loss, with every adapter tensor stacked over the
clients. Each client has its own loss, gradient and optimizer state, and sees the same batches in
the same order as alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.backbone.clip import Activations, Backbone, ClassTexts, Images
from pfedmma_deploy.backbone.flops import image_tokens
from pfedmma_deploy.backbone.linear import batched_linear, fast_linear
from pfedmma_deploy.methods.base import Method, Tensors
from pfedmma_deploy.methods.client_run import Batch, ClientRun, LocalTraining
from pfedmma_deploy.types import Tower

CPU_BYTES = 20_000_000
"""Of the largest activation of a pass on a CPU, where one client alone does not exceed it: larger
ones leave the caches, and cost a page fault every 4 KB when they are taken from the system anew.
4 clients in a pass instead of 1 make ViT-B/16 (10 MB per 4 images) 1.25 times slower, 2 instead of
1 ViT-B/32 and pfedmma-tiny 1.04 and 1.2 times faster."""
GPU_SHARE = 0.5
"""Of the device's memory, for what a pass keeps for its gradients."""
KEPT_PER_TOKEN = 24
"""Numbers kept for the gradient per token, block and unit of width: inputs of the norms, queries,
keys, values, the mixture, and the MLP's two layers, four times as wide, with their activation."""


def clients_per_pass(
    method: Method[Any, Any],
    backbone: Backbone,
    adapter: Adapter,
    options: LocalTraining,
    images: int,
    texts: ClassTexts,
) -> int:
    """How many clients train together on this machine; 1 where the method trains them one by one.

    Args:
        method: batched if it trains plain epochs of plain SGD with a loss that vmap can take.
        backbone: what its clients are adapted on.
        adapter: of the method.
        options: of local training.
        images: of one client in a step.
        texts: the prompts of a step.
    """
    is_plain = type(method).train_client is Method.train_client and method.is_batchable
    if not is_plain or options.optimizer != "sgd" or not adapter.tensors():
        return 1
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
    return max(1, int(GPU_SHARE * memory / (4 * max(1, numbers))))


def train_together(
    runs: Sequence[ClientRun[Adapter]], states: Sequence[Tensors]
) -> list[tuple[float, Tensors]]:
    """Train several clients in one pass for the option's epochs.

    Args:
        runs: one per client, of one method and with one `adapter` between them, left alone.
        states: all tensors of each client's adapter; `runs[i].optimizer` is read and replaced.

    Returns:
        Mean loss and trained tensors of each client.
    """
    losses: list[list[float]] = [[] for _ in runs]
    found: list[Tensors] = [{} for _ in runs]
    stack = _Stack(
        runs[0],
        list(range(len(runs))),
        states,
        [run.optimizer for run in runs],
        [run.received for run in runs],
    )
    waiting = [run.batches() for run in runs]
    while True:
        batches = {}
        for row in stack.clients:
            batch = next(waiting[row], None)
            if batch is None:
                found[row], runs[row].optimizer = stack.take(row)
            else:
                batches[row] = batch
        if not batches:
            return [
                (sum(own) / len(own), trained) for own, trained in zip(losses, found, strict=True)
            ]
        # Clients have different numbers of steps: those that are done leave the stack, so that
        # neither momentum nor weight decay goes on without them.
        if len(batches) < len(stack.clients):
            stack = stack.only(list(batches))
        for row, loss in stack.step(batches):
            losses[row].append(loss)


class _Loss(nn.Module):
    """The method's loss as a module, whose adapter `functional_call` gives other tensors."""

    def __init__(self, run: ClientRun[Adapter]) -> None:
        super().__init__()
        self.adapter = run.adapter
        self.run = run
        # A backbone that was given another linear for a benchmark keeps it.
        is_usual = run.backbone.linear is fast_linear
        linear = batched_linear if is_usual else run.backbone.linear
        self.backbone = replace(run.backbone, linear=linear)

    def forward(self, batch: Batch) -> Tensor:
        """A scalar."""
        return self.run.loss(self.backbone, self.adapter, batch)


class _Stack:
    """Adapters and optimizer of some clients, every tensor with the clients in front.

    Args:
        run: of any of the clients; its adapter says which tensors there are.
        clients: their numbers.
        states: all tensors of each client, by name.
        optimizers: `name/momentum_buffer` of each client; empty before its first step.
        received: what the server sent each of them.
    """

    def __init__(
        self,
        run: ClientRun[Adapter],
        clients: Sequence[int],
        states: Sequence[Tensors],
        optimizers: Sequence[Tensors],
        received: Sequence[Tensors],
    ) -> None:
        self.run = run
        self.clients = list(clients)
        self.received = received
        device = run.backbone.device
        scopes = run.adapter.scopes()
        self.values = {}
        for name in states[0]:
            value = torch.stack([state[name] for state in states]).to(device)
            self.values[name] = value.requires_grad_(scopes[name] in run.options.scopes)
        self.trained = {name: v for name, v in self.values.items() if v.requires_grad}
        options = run.options
        # SGD works number by number, so that one step of the stack is one of each client.
        self.solver = torch.optim.SGD(
            self.trained.values(),
            lr=options.lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
        )
        if options.momentum > 0 and any(optimizers):
            for name, value in self.trained.items():
                key = f"{name}/momentum_buffer"
                # Zero is where a client without a history starts from.
                buffers = [o.get(key, torch.zeros_like(value[0])).to(value) for o in optimizers]
                self.solver.state[value]["momentum_buffer"] = torch.stack(buffers)

    def take(self, client: int) -> tuple[Tensors, Tensors]:
        """The tensors of one client and the state of its optimizer."""
        row = self.clients.index(client)
        own = {name: value[row].detach().clone() for name, value in self.values.items()}
        optimizer: Tensors = {}
        for name, value in self.trained.items():
            buffer = self.solver.state[value].get("momentum_buffer")
            if buffer is not None:
                optimizer[f"{name}/momentum_buffer"] = buffer[row].detach().cpu().clone()
        return own, optimizer

    def only(self, clients: Sequence[int]) -> _Stack:
        """The same for some of the clients, in their order here."""
        taken = [self.take(client) for client in clients]
        return _Stack(
            self.run,
            clients,
            [own for own, _ in taken],
            [state for _, state in taken],
            [self.received[self.clients.index(client)] for client in clients],
        )

    def step(self, batches: dict[int, Batch]) -> Iterator[tuple[int, float]]:
        """One step of every client on its batch; yields their losses."""
        # A batch at the end of an epoch is smaller: clients with equally many images go together.
        by_size: dict[int, list[int]] = defaultdict(list)
        for client, batch in batches.items():
            by_size[len(batch.labels)].append(client)
        self.solver.zero_grad()
        for clients in by_size.values():
            losses = self._losses(clients, [batches[client] for client in clients])
            # A sum, not a mean: no client's gradient may depend on how many train beside it.
            losses.sum().backward()  # type: ignore[no-untyped-call]  # untyped in torch
            yield from zip(clients, losses.tolist(), strict=True)
        self.solver.step()

    def _losses(self, clients: Sequence[int], batches: Sequence[Batch]) -> Tensor:
        """The loss of each client on its batch, [K]."""
        rows = [self.clients.index(client) for client in clients]
        values = self.values
        # index_select copies: where every client takes part, the stack itself serves.
        if len(rows) < len(self.clients):
            chosen = torch.tensor(rows, device=self.run.backbone.device)
            values = {name: value.index_select(0, chosen) for name, value in values.items()}
        module, first = _Loss(self.run), batches[0]

        def loss(own: Tensors, received: Tensors, images: Tensor, labels: Tensor) -> Tensor:
            pixels: Images = images
            if isinstance(first.pixels, Activations):
                pixels = Activations(images, first.pixels.start)
            batch = replace(first, pixels=pixels, labels=labels, received=received, examples=())
            named = {f"adapter.{name}": value for name, value in own.items()}
            found: Tensor = functional_call(module, named, (batch,))
            return found

        sent = {
            name: torch.stack([self.received[row][name] for row in rows])
            for name in self.received[rows[0]]
        }
        images = torch.stack([_tensor(batch.pixels) for batch in batches])
        labels = torch.stack([batch.labels for batch in batches])
        device = self.run.backbone.device
        found: Tensor = vmap(loss)(values, sent, images.to(device), labels.to(device))
        return found


def _tensor(images: Images) -> Tensor:
    return images.tokens if isinstance(images, Activations) else images
