"""TAP: two-stage adaptive personalization, on the low-rank components of CLIP.

arXiv 2509.26524: a faithful realisation on CLIP, not a replication of the paper's models. Clients
differ in data, tasks and modalities. The server holds the union of the components image/shared,
text/shared, image/<task>, text/<task>; a client downloads, trains and uploads only those it uses,
and keeps beside this federated model a personal one that never leaves. The weight of an attention
under one task is the frozen one plus the mean of two components, the tower's shared one and the
task's own (queries and values; see `adapters.lora`), so every task of a client merges exactly into
plain CLIP weights:

    W' = W + (alpha / r) * (B_shared A_shared + B_task A_task) / 2

Stage 1, whenever a client takes part: train the federated model; per task, if
loss_federated + margin < loss_personal, overwrite what the task uses of the personal model (the
first participation always does); train the personal model; upload the federated one. The server
averages every component over the clients that hold it, weighted by their number of images, and
keeps what nobody sent. Stage 2, in personalization: the federated model, fine-tuned, teaches the
personal one.

Tasks and modalities follow from a client's data. Every client has class names and can `classify`.
One whose training images have captions also learns to `retrieve` (symmetric InfoNCE over the
image-caption pairs of a batch) and holds text components; one without captions is image-only: it
holds none and compares with the frozen text features. `tasks` and `modalities` say otherwise.
On plain folders of one task this reduces to two LoRA copies of the image tower, gated overwriting
and distillation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma_deploy.adapters.base import Adapter, ExportBanks
from pfedmma_deploy.adapters.lora import LowRankBlock, low_rank_banks
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.methods.aggregation import Aggregator, PerHolder
from pfedmma_deploy.methods.base import (
    Batch,
    ClientRun,
    Method,
    Parameters,
    Tensors,
    clip_logits,
    divergence,
)
from pfedmma_deploy.types import TOWERS, ClientData, Scope, Tower

Task = Literal["classify", "retrieve"]
TASKS: tuple[Task, ...] = get_args(Task)
Model = Literal["federated", "personal"]
SHARED: Final = "shared"
COMPONENTS: tuple[str, ...] = tuple(
    f"{tower}/{kind}" for tower in TOWERS for kind in (SHARED, *TASKS)
)
"""A tower, and `shared` or a task."""


@dataclass(frozen=True)
class TAPParameters(Parameters):
    """Hyper-parameters and their symbols in the paper; two of them are the data's to choose."""

    rank: Annotated[int, Field(ge=1)] = 8
    """r"""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """alpha; products are scaled by alpha / r."""
    tasks: Literal["auto", "classify", "one"] = "auto"
    """auto: classify, and retrieve where there are captions; classify: nothing else; one: retrieve
    where there are captions, classify elsewhere."""
    modalities: Literal["auto", "image", "both"] = "auto"
    """auto: text components where there are captions; image: nowhere; both: everywhere."""
    classify_margin: Annotated[float, Field(ge=0)] = 0.01
    """Margin of the replacement rule for `classify`."""
    retrieve_margin: Annotated[float, Field(ge=0)] = 0.005
    """Margin of the replacement rule for `retrieve`, a text task."""
    history: bool = False
    """Compare running training losses, as the paper's code does, instead of held-out losses."""
    distill_weight: Annotated[float, Field(ge=0)] = 2e-3
    """lambda, weight of KL(teacher || student); at this size it hardly moves classification."""
    distill_lr: Annotated[float, Field(gt=0)] = 1e-4
    """Learning rate of stage 2 (AdamW)."""
    distill_batches: Annotated[int, Field(ge=1)] = 50
    """Batches of fine-tuning for the teacher, and again of distillation."""
    accumulate: Annotated[int, Field(ge=1)] = 4
    """Batches whose gradients make one step in stage 2."""


@dataclass(frozen=True)
class TAPState:
    """What a client remembers of its participations."""

    held: Sequence[str] = ()
    """Of `COMPONENTS`, those that the client holds; none before its first round."""
    participations: int = 0
    """Rounds that it took part in."""
    losses: Mapping[str, float] = field(default_factory=dict)
    """The personal model's last training loss by task."""


class ComponentAdapter(Adapter):
    """The union of all components, of which a client holds some, as two models.

    Parameters are named `federated.{tower}.{kind}.{block}.{q,v}.A` [r, d] and `.B` [d, r], kind
    being `shared` or a task, and the same under `personal`. Both models start equal, and at the
    frozen CLIP (B = 0).

    Args:
        backbone: tells the widths and the depths.
        parameters: r and alpha.
        generator: draws A.
    """

    def __init__(
        self, backbone: Backbone, parameters: TAPParameters, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.rank = rank = parameters.rank
        # The mean of two components.
        self.scale = parameters.alpha / rank / 2
        self.model: Model = "personal"
        self.held: tuple[str, ...] = ()
        """Components of the client whose tensors are loaded."""
        for model in get_args(Model):
            towers: dict[str, nn.Module] = {}
            for tower in TOWERS:
                kinds: dict[str, nn.Module] = {}
                for kind in (SHARED, *TASKS):
                    width, depth = backbone.width(tower), backbone.depth(tower)
                    blocks = [LowRankBlock(width, rank, generator) for _ in range(depth)]
                    kinds[kind] = nn.ModuleList(blocks)
                towers[tower] = nn.ModuleDict(kinds)
            self.add_module(model, nn.ModuleDict(towers))
        for component in COMPONENTS:
            self._overwrite_personal(component)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks that the client holds components of."""
        kinds = {component.split("/")[1] for component in self.held}
        return tuple(task for task in TASKS if task in kinds)

    @contextmanager
    def using(self, model: Model, task: str) -> Iterator[None]:
        """Encode with this model and for this task."""
        before = self.model, self.task
        self.model, self.task = model, task
        try:
            yield
        finally:
            self.model, self.task = before

    def attention(self, tower: Tower, block: int, weight: Tensor) -> Tensor:
        """The block's fused weight under the current model and task, of what the client holds."""
        for kind in (SHARED, self._known_task()):
            if f"{tower}/{kind}" in self.held:
                lora = self._lora(self.model, tower, kind, block)
                weight = lora.change(weight, self.scale, dropout=0.0)
        return weight

    def replace(self, task: str) -> None:
        """Overwrite what the task uses of the personal model by the federated one's."""
        for component in self.held:
            if component.split("/")[1] in (SHARED, task):
                self._overwrite_personal(component)

    def names(self, model: Model, components: Collection[str]) -> list[str]:
        """Parameters of some components of a model."""
        found = []
        for component in components:
            path = f"{model}.{component.replace('/', '.')}"
            found += [f"{path}.{name}" for name, _ in self.get_submodule(path).named_parameters()]
        return found

    def export_banks(self, backbone: Backbone) -> list[ExportBanks]:
        """The personal model for `classify`, or the only task of a client that knows another.

        Its two components side by side; one that the client does not hold is zero.
        """
        found = []
        for tower in TOWERS:
            for block in range(backbone.depth(tower)):
                pairs: dict[str, list[tuple[Tensor, Tensor]]] = {"q": [], "v": []}
                for kind in (SHARED, self._known_task("classify")):
                    lora = self._lora("personal", tower, kind, block)
                    is_held = f"{tower}/{kind}" in self.held
                    for name, factors in (("q", lora.q), ("v", lora.v)):
                        b = factors.B if is_held else torch.zeros_like(factors.B)
                        pairs[name].append((factors.A, b))
                found.append(low_rank_banks(tower, block, pairs, self.scale))
        return found

    def export_settings(self) -> dict[str, Any]:
        """Rank of both components together, and the factor on their sum."""
        return {"kind": "low-rank", "rank": 2 * self.rank, "scale": self.scale}

    def scopes(self) -> dict[str, Scope]:
        """Federated components are shared, personal ones are local."""
        return dict.fromkeys(self.names("federated", COMPONENTS), Scope.SHARED) | dict.fromkeys(
            self.names("personal", COMPONENTS), Scope.LOCAL
        )

    def _known_task(self, wanted: str | None = None) -> str:
        """The task to encode for, or the first that the client knows where it does not know it."""
        wanted = wanted or self.task
        known: tuple[str, ...] = self.tasks
        return wanted if wanted in known or not known else known[0]

    def _lora(self, model: str, tower: Tower, kind: str, block: int) -> LowRankBlock:
        found = self.get_submodule(f"{model}.{tower}.{kind}.{block}")
        assert isinstance(found, LowRankBlock)
        return found

    def _overwrite_personal(self, component: str) -> None:
        path = component.replace("/", ".")
        values = self.get_submodule(f"federated.{path}").state_dict()
        self.get_submodule(f"personal.{path}").load_state_dict(values)


class TAP(Method[ComponentAdapter, TAPParameters]):
    """Two models of low-rank components per tower and task; one of them travels."""

    name = "tap"
    paper = "TAP, arXiv 2509.26524"
    trained = "two models of low-rank components per tower and task"
    shared = "the components that a client holds, of one of the models"
    Parameters = TAPParameters
    State = TAPState
    defaults = MappingProxyType({"optimizer": "adamw", "lr": 3e-4, "weight_decay": 0.01})
    merges = True
    is_two_stage = True

    def build(self, backbone: Backbone, generator: torch.Generator) -> ComponentAdapter:
        """The union of all components, as two equal models."""
        return ComponentAdapter(backbone, self.parameters, generator)

    def read_state(
        self, tensors: Tensors, stored: Mapping[str, Any] | None
    ) -> tuple[Tensors, TAPState]:
        """Version 0.1 kept the state as tensors among those of the adapter."""
        if stored is not None or "holds" not in tensors:
            return super().read_state(tensors, stored)
        rest = dict(tensors)
        flags, losses = rest.pop("holds").tolist(), rest.pop("losses").tolist()
        return rest, TAPState(
            held=tuple(c for c, flag in zip(COMPONENTS, flags, strict=True) if flag),
            participations=int(rest.pop("participations").item()),
            losses=dict(zip(TASKS, losses, strict=True)),
        )

    def load_client(self, adapter: ComponentAdapter, tensors: Tensors, state: TAPState) -> None:
        """The tensors, and which components they are of."""
        super().load_client(adapter, tensors, state)
        adapter.held = tuple(state.held)

    def components_of(self, client: ClientData) -> tuple[str, ...]:
        """What a client with these data holds: see `TAPParameters.tasks` and `modalities`."""
        has_captions = any(example.caption for example in client.train)
        tasks: Sequence[Task] = TASKS if has_captions else ("classify",)
        if self.parameters.tasks == "classify":
            tasks = ("classify",)
        if self.parameters.tasks == "one" and has_captions:
            tasks = ("retrieve",)
        modalities = self.parameters.modalities
        has_text = has_captions if modalities == "auto" else modalities == "both"
        towers: Sequence[Tower] = TOWERS if has_text else ("image",)
        return tuple(f"{tower}/{kind}" for tower in towers for kind in (SHARED, *tasks))

    def loss(self, backbone: Backbone, adapter: ComponentAdapter, batch: Batch) -> Tensor:
        """The personal model's mean loss over the client's tasks."""
        return mean_loss("personal")(backbone, adapter, batch)

    def train_client(self, run: ClientRun[ComponentAdapter]) -> float:
        """Stage 1; returns the personal model's mean training loss.

        The round's line says which components the client holds and, per task, the two losses that
        were compared, the margin, and whether the personal model was overwritten.
        """
        adapter, state = run.adapter, run.state
        adapter.held = self.components_of(run.client)
        # As in the paper's code, optimizers do not outlive a participation: an overwritten
        # component would otherwise be driven by the moments of what it was before.
        run.optimizer.clear()
        running = self._train_model(run, "federated")
        replacements = []
        for task in adapter.tasks:
            federated, personal = self._compared(run, task, running)
            is_classify = task == "classify"
            parameters = self.parameters
            margin = parameters.classify_margin if is_classify else parameters.retrieve_margin
            is_first = state.participations == 0
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
        losses = self._train_model(run, "personal")
        run.state = TAPState(adapter.held, state.participations + 1, losses)
        run.remarks["components"] = list(adapter.held)
        run.remarks["replacements"] = replacements
        return sum(losses.values()) / len(losses)

    def personalize(self, run: ClientRun[ComponentAdapter]) -> float:
        """Stage 2; returns the student's mean loss.

        Teacher: the final federated model, fine-tuned for `distill_batches`; afterwards it is what
        it was. Student: the personal model, loss = task loss + lambda * KL(teacher || student). A
        client that never took part starts its personal model from the teacher. What is trained,
        how long and how fast are the method's own parameters: `--epochs` and `--lr` do not count.
        """
        adapter = run.adapter
        adapter.held = self.components_of(run.client)
        run.optimizer.clear()
        received = adapter.tensors(Scope.SHARED)
        self._distil_step(run, "federated", mean_loss("federated"))
        if run.state.participations == 0:
            for task in adapter.tasks:
                adapter.replace(task)
        loss = self._distil_step(run, "personal", self._distillation)
        for name, value in adapter.named_parameters():
            if name in received:
                value.data.copy_(received[name])
        run.state = replace(run.state, held=adapter.held)
        return loss

    def upload(self, adapter: ComponentAdapter, client: ClientData) -> Tensors:
        """The federated model's components that the client holds; the personal model stays."""
        return self._of_client(adapter.tensors(Scope.SHARED), adapter, client)

    def aggregator(self, rule: str | None = None) -> Aggregator:
        """Each component over its holders."""
        return PerHolder(super().aggregator(rule))

    def download(self, sent: Tensors, adapter: ComponentAdapter, client: ClientData) -> Tensors:
        """The components that a client with these data holds."""
        return self._of_client(sent, adapter, client)

    def _of_client(
        self, tensors: Tensors, adapter: ComponentAdapter, client: ClientData
    ) -> Tensors:
        names = set(adapter.names("federated", self.components_of(client)))
        return {name: value for name, value in tensors.items() if name in names}

    def _train_model(self, run: ClientRun[ComponentAdapter], model: Model) -> dict[str, float]:
        """Train a model for the round's epochs; its mean training loss per task."""
        seen: dict[str, list[float]] = {task: [] for task in run.adapter.tasks}
        run.fit(mean_loss(model, seen), only=run.adapter.names(model, run.adapter.held))
        return {task: math.fsum(values) / len(values) for task, values in seen.items()}

    def _compared(
        self, run: ClientRun[ComponentAdapter], task: Task, running: Mapping[str, float]
    ) -> tuple[float, float]:
        """Losses of the federated and of the personal model that the replacement rule looks at."""
        if self.parameters.history:
            return running[task], run.state.losses.get(task, 0.0)
        federated = run.held_out(task_loss("federated", task))
        return federated, run.held_out(task_loss("personal", task))

    def _distil_step(self, run: ClientRun[ComponentAdapter], model: Model, loss: Loss) -> float:
        """Train a model for the batches of stage 2."""
        return run.fit(
            loss,
            only=run.adapter.names(model, run.adapter.held),
            steps=self.parameters.distill_batches,
            lr=self.parameters.distill_lr,
            optimizer="adamw",
            accumulate=self.parameters.accumulate,
        )

    def _distillation(self, backbone: Backbone, adapter: ComponentAdapter, batch: Batch) -> Tensor:
        """The student's loss: mean over tasks of its own loss + lambda * KL(teacher || student)."""
        values = []
        for task in adapter.tasks:
            student = task_scores(backbone, adapter, batch, "personal", task)
            with torch.no_grad():
                teacher = task_scores(backbone, adapter, batch, "federated", task)
            drift = score_divergence(task, student, teacher)
            own = score_loss(task, student, batch.labels)
            values.append(own + self.parameters.distill_weight * drift)
        return torch.stack(values).mean()


Loss = Callable[[Backbone, ComponentAdapter, Batch], Tensor]


def task_loss(model: Model, task: Task) -> Loss:
    """The loss of a model on one task."""

    def loss(backbone: Backbone, adapter: ComponentAdapter, batch: Batch) -> Tensor:
        return score_loss(task, task_scores(backbone, adapter, batch, model, task), batch.labels)

    return loss


def mean_loss(model: Model, seen: Mapping[str, list[float]] | None = None) -> Loss:
    """The mean over the client's tasks; each task's own value is noted in `seen`."""

    def loss(backbone: Backbone, adapter: ComponentAdapter, batch: Batch) -> Tensor:
        values = []
        for task in adapter.tasks:
            value = task_loss(model, task)(backbone, adapter, batch)
            if seen is not None:
                seen[task].append(value.item())
            values.append(value)
        return torch.stack(values).mean()

    return loss


def task_scores(
    backbone: Backbone, adapter: ComponentAdapter, batch: Batch, model: Model, task: Task
) -> Tensor:
    """Scores of a batch under a model and a task.

    classify: [B, C], images against class names. retrieve: [P, P], the images that have captions
    against their captions; P may be 0.
    """
    with adapter.using(model, task):
        if task == "classify":
            return clip_logits(backbone, adapter, batch)
        rows = [i for i, example in enumerate(batch.examples) if example.caption]
        if not rows:
            return torch.zeros(0, 0, device=backbone.device)
        captions = [example.caption for example in batch.examples if example.caption]
        images = adapter.encode_image(backbone, batch.pixels)[rows]
        tokens = backbone.tokenize(captions)
        texts = backbone.encode_text(tokens, adapter.hook, attention=adapter.attention)
        return batch.logit_scale * images @ texts.T


def score_loss(task: Task, scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy [B, C], or symmetric InfoNCE [P, P] whose pairs are on the diagonal."""
    if task == "classify":
        return F.cross_entropy(scores, labels.to(scores.device))
    if len(scores) == 0:
        return scores.sum()
    pairs = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, pairs) + F.cross_entropy(scores.T, pairs)) / 2


def score_divergence(task: Task, student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student), batch mean; for retrieval the mean of both directions."""
    if task == "classify":
        return divergence(student, teacher)
    if len(student) == 0:
        return student.sum()
    return (divergence(student, teacher) + divergence(student.T, teacher.T)) / 2
