"""What a client does in TAP: both stages, and what it holds. See `tap` for the method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.adapters.components import (
    SHARED_PART,
    TASKS,
    Component,
    ComponentAdapter,
    Model,
    Task,
)
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.methods.base import Batch, ClientRun, Loss
from pfedmma_deploy.methods.ranges import above, at_least, one_of
from pfedmma_deploy.methods.tap_tasks import score_divergence, score_loss, task_scores
from pfedmma_deploy.types import TOWERS, ClientData, Scope, Tower


@dataclass(frozen=True)
class TAPParameters:
    """Hyper-parameters and their symbols in the paper; two of them are the data's to choose."""

    rank: int = 8
    """r"""
    alpha: float = 16.0
    """alpha; products are scaled by alpha / r."""
    tasks: str = "auto"
    """auto: classify, and retrieve where there are captions; classify: nothing else; one: retrieve
    where there are captions, classify elsewhere."""
    modalities: str = "auto"
    """auto: text components where there are captions; image: nowhere; both: everywhere."""
    classify_margin: float = 0.01
    """Margin of the replacement rule for `classify`."""
    retrieve_margin: float = 0.005
    """Margin of the replacement rule for `retrieve`, a text task."""
    history: bool = False
    """Compare running training losses, as the paper's code does, instead of held-out losses."""
    distill_weight: float = 2e-3
    """lambda, weight of KL(teacher || student); at this size it hardly moves classification."""
    distill_lr: float = 1e-4
    """Learning rate of stage 2 (AdamW)."""
    distill_batches: int = 50
    """Batches of fine-tuning for the teacher, and again of distillation."""
    accumulate: int = 4
    """Batches whose gradients make one step in stage 2."""

    def __post_init__(self) -> None:
        for name in ("rank", "distill_batches", "accumulate"):
            at_least(name, getattr(self, name), 1)
        for name in ("classify_margin", "retrieve_margin", "distill_weight"):
            at_least(name, getattr(self, name), 0)
        above("alpha", self.alpha, 0)
        above("distill_lr", self.distill_lr, 0)
        one_of("tasks", self.tasks, ("auto", "classify", "one"))
        one_of("modalities", self.modalities, ("auto", "image", "both"))

    def margin(self, task: Task) -> float:
        """The margin of a task."""
        return self.classify_margin if task == "classify" else self.retrieve_margin


class TAPAdapter(ComponentAdapter):
    """The components and the rules of the method."""

    def __init__(
        self,
        widths: Mapping[Tower, int],
        depths: Mapping[Tower, int],
        rules: TAPParameters,
        generator: torch.Generator,
    ) -> None:
        super().__init__(widths, depths, rules.rank, rules.alpha, generator)
        self.rules = rules


def components_of(client: ClientData, rules: TAPParameters) -> tuple[Component, ...]:
    """What a client with these data holds: see `TAPParameters.tasks` and `modalities`."""
    has_captions = any(example.caption for example in client.train)
    tasks: Sequence[Task] = TASKS if has_captions else ("classify",)
    if rules.tasks == "classify":
        tasks = ("classify",)
    if rules.tasks == "one" and has_captions:
        tasks = ("retrieve",)
    has_text = has_captions if rules.modalities == "auto" else rules.modalities == "both"
    towers: Sequence[Tower] = TOWERS if has_text else ("image",)
    return tuple((tower, part) for tower in towers for part in (SHARED_PART, *tasks))


def train(run: ClientRun) -> float:
    """Stage 1; returns the personal model's mean training loss.

    The round's line says which components the client holds and, per task, the two losses that were
    compared, the margin, and whether the personal model was overwritten.
    """
    adapter = _adapter(run)
    adapter.hold(components_of(run.client, adapter.rules))
    # As in the paper's code, optimizers do not outlive a participation: an overwritten component
    # would otherwise be driven by the moments of what it was before.
    run.optimizer.clear()
    running = _fit(run, "federated")
    replacements = []
    for task in _tasks(adapter):
        federated, personal = _compared(run, task, running)
        margin = adapter.rules.margin(task)
        is_first = not adapter.participations.item()
        replaced = is_first or federated + margin < personal
        if replaced:
            adapter.replace(task)
        replacements.append(
            {
                "task": task,
                "federated": federated,
                "personal": None if is_first else personal,
                "margin": margin,
                "replaced": replaced,
            }
        )
    losses = _fit(run, "personal")
    adapter.participations.data += 1
    adapter.losses.data.copy_(torch.tensor([losses.get(task, 0.0) for task in TASKS]))
    run.record["components"] = [f"{tower}/{part}" for tower, part in adapter.held]
    run.record["replacements"] = replacements
    return sum(losses.values()) / len(losses)


def distil(run: ClientRun) -> float:
    """Stage 2; returns the student's mean loss.

    Teacher: the final federated model, fine-tuned for `distill_batches`; afterwards it is what it
    was. Student: the personal model, loss = task loss + lambda * KL(teacher || student). A client
    that never took part starts its personal model from the teacher. What is trained, how long and
    how fast are the method's own parameters: `--epochs` and `--lr` do not count.
    """
    adapter = _adapter(run)
    adapter.hold(components_of(run.client, adapter.rules))
    run.optimizer.clear()
    received = adapter.tensors(Scope.SHARED)
    _steps(run, "federated", _mean_loss("federated"))
    if not adapter.participations.item():
        for task in _tasks(adapter):
            adapter.replace(task)
    loss = _steps(run, "personal", _distillation)
    for name, value in adapter.named_parameters():
        if name in received:
            value.data.copy_(received[name])
    return loss


def personal_loss(backbone: Backbone, adapter: Adapter, batch: Batch) -> Tensor:
    """The personal model's mean loss over the client's tasks."""
    return _mean_loss("personal")(backbone, adapter, batch)


def _adapter(run: ClientRun) -> TAPAdapter:
    assert isinstance(run.adapter, TAPAdapter)
    return run.adapter


def _tasks(adapter: ComponentAdapter) -> tuple[Task, ...]:
    return tuple(task for task in TASKS if task in adapter.tasks)


def _compared(run: ClientRun, task: Task, running: Mapping[Task, float]) -> tuple[float, float]:
    """Losses of the federated and of the personal model that the replacement rule looks at."""
    adapter = _adapter(run)
    if adapter.rules.history:
        return running[task], float(adapter.losses[TASKS.index(task)])
    return run.held_out(_task_loss("federated", task)), run.held_out(_task_loss("personal", task))


def _fit(run: ClientRun, model: Model) -> dict[Task, float]:
    """Train a model for the round's epochs; its mean training loss per task."""
    seen: dict[Task, list[float]] = {task: [] for task in _tasks(_adapter(run))}
    run.fit(_mean_loss(model, seen), only=_names(run, model))
    return {task: math.fsum(values) / len(values) for task, values in seen.items()}


def _steps(run: ClientRun, model: Model, loss: Loss) -> float:
    """Train a model for the batches of stage 2."""
    rules = _adapter(run).rules
    return run.fit(
        loss,
        only=_names(run, model),
        steps=rules.distill_batches,
        lr=rules.distill_lr,
        optimizer="adamw",
        accumulate=rules.accumulate,
    )


def _names(run: ClientRun, model: Model) -> list[str]:
    adapter = _adapter(run)
    return adapter.names(model, adapter.held)


def _task_loss(model: Model, task: Task) -> Loss:
    def loss(backbone: Backbone, adapter: Adapter, batch: Batch) -> Tensor:
        assert isinstance(adapter, ComponentAdapter)
        return score_loss(task, task_scores(backbone, adapter, batch, model, task), batch.labels)

    return loss


def _mean_loss(model: Model, seen: Mapping[Task, list[float]] | None = None) -> Loss:
    """The mean over the client's tasks; each task's own value is noted in `seen`."""

    def loss(backbone: Backbone, adapter: Adapter, batch: Batch) -> Tensor:
        assert isinstance(adapter, ComponentAdapter)
        tasks = _tasks(adapter)
        values = [_task_loss(model, task)(backbone, adapter, batch) for task in tasks]
        for task, value in zip(tasks, values, strict=True):
            if seen is not None:
                seen[task].append(value.item())
        return torch.stack(values).mean()

    return loss


def _distillation(backbone: Backbone, adapter: Adapter, batch: Batch) -> Tensor:
    """The student's loss: mean over tasks of its own loss + lambda * KL(teacher || student)."""
    assert isinstance(adapter, TAPAdapter)
    values = []
    for task in _tasks(adapter):
        student = task_scores(backbone, adapter, batch, "personal", task)
        with torch.no_grad():
            teacher = task_scores(backbone, adapter, batch, "federated", task)
        drift = score_divergence(task, student, teacher)
        values.append(
            score_loss(task, student, batch.labels) + adapter.rules.distill_weight * drift
        )
    return torch.stack(values).mean()
