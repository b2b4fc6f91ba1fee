"""Low-rank components per tower and task, in two copies: a federated and a personal model.

The weight of an attention under one task is the frozen one plus the mean of what two components
say, the tower's shared one and the task's own (queries and values; see `lora`):

    W' = W + (alpha / r) * (B_shared A_shared + B_task A_task) / 2

Every task of a client therefore folds exactly into plain CLIP weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.adapters.lora import LowRankBlock
from pfedmma_deploy.types import TOWERS, Scope, Tower

Task = Literal["classify", "retrieve"]
TASKS: tuple[Task, ...] = get_args(Task)
Model = Literal["federated", "personal"]
SHARED_PART = "shared"

Component = tuple[Tower, str]
"""A tower, and `shared` or a task."""
COMPONENTS: tuple[Component, ...] = tuple(
    (tower, part) for tower in TOWERS for part in (SHARED_PART, *TASKS)
)


class ComponentAdapter(Adapter):
    """The union of all components, of which a client holds some, as two models.

    Parameters are named `federated.{tower}.{part}.{block}.{q,v}.A` [r, d] and `.B` [d, r], the same
    under `personal`, and three that are never trained: `holds` [6], 1 for each of `COMPONENTS` that
    the client holds; `participations` [1], rounds that it took part in; `losses` [2], the personal
    model's last training loss per task. Both models start equal, and at the frozen CLIP (B = 0).

    Args:
        widths: token width d of each tower.
        depths: number of blocks of each tower.
        rank: r.
        alpha: products are scaled by alpha / r.
        generator: draws A.
    """

    def __init__(
        self,
        widths: Mapping[Tower, int],
        depths: Mapping[Tower, int],
        rank: int,
        alpha: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.model: Model = "personal"

        def blocks(tower: Tower) -> nn.Module:
            return nn.ModuleList(
                LowRankBlock(widths[tower], rank, generator) for _ in range(depths[tower])
            )

        for model in get_args(Model):
            towers: dict[str, nn.Module] = {
                tower: nn.ModuleDict({part: blocks(tower) for part in (SHARED_PART, *TASKS)})
                for tower in TOWERS
            }
            self.add_module(model, nn.ModuleDict(towers))
        for component in COMPONENTS:
            self._copy("federated", "personal", component)
        self.held: tuple[Component, ...] = ()
        """Components that the client holds: `holds`, read once; none before its first round."""
        self.holds = nn.Parameter(torch.zeros(len(COMPONENTS)), requires_grad=False)
        self.participations = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.losses = nn.Parameter(torch.zeros(len(TASKS)), requires_grad=False)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that the client holds components of."""
        return tuple(task for task in TASKS if any(part == task for _, part in self.held))

    def hold(self, components: Collection[Component]) -> None:
        """Say which components this client holds."""
        flags = [float(component in components) for component in COMPONENTS]
        self.holds.data.copy_(torch.tensor(flags))
        self.held = tuple(component for component in COMPONENTS if component in components)

    def load(self, *parts: dict[str, Tensor]) -> None:
        """Set every parameter from the parts together; strict, as every adapter's."""
        super().load(*parts)
        flags = self.holds.tolist()
        self.held = tuple(c for c, flag in zip(COMPONENTS, flags, strict=True) if flag)

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
        task = self.task if self.task in self.tasks else next(iter(self.tasks), self.task)
        held = [part for part in (SHARED_PART, task) if (tower, part) in self.held]
        for part in held:
            lora = self.get_submodule(f"{self.model}.{tower}.{part}.{block}")
            assert isinstance(lora, LowRankBlock)
            weight = lora.change(weight, self.scale / 2, dropout=0.0)
        return weight

    def replace(self, task: str) -> None:
        """Overwrite what the task uses of the personal model by the federated one's."""
        for tower, part in self.held:
            if part in (SHARED_PART, task):
                self._copy("federated", "personal", (tower, part))

    def names(self, model: Model, components: Collection[Component]) -> list[str]:
        """Parameters of some components of a model."""
        return [
            f"{model}.{tower}.{part}.{name}"
            for tower, part in components
            for name, _ in self.get_submodule(f"{model}.{tower}.{part}").named_parameters()
        ]

    def scopes(self) -> dict[str, Scope]:
        """Federated components are shared, personal ones are local, the rest is frozen."""
        return (
            dict.fromkeys(self.names("federated", COMPONENTS), Scope.SHARED)
            | dict.fromkeys(self.names("personal", COMPONENTS), Scope.LOCAL)
            | dict.fromkeys(("holds", "participations", "losses"), Scope.FROZEN)
        )

    def _copy(self, source: Model, target: Model, component: Component) -> None:
        tower, part = component
        values = self.get_submodule(f"{source}.{tower}.{part}").state_dict()
        self.get_submodule(f"{target}.{tower}.{part}").load_state_dict(values)
