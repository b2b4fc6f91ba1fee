"""FedDAT: a shared and a local adapter that teach each other beside a frozen received copy.

arXiv 2308.12305. In every block of both towers stand two parallel bottlenecks, A_s and A_c. A_s is
averaged over clients, weighted by the number of images; A_c never leaves. At the start of a round a
client keeps a frozen copy A_s* of what it received. The dual-adapter teacher adds (A_c + A_s*) / 2,
with scores z_t; A_s alone gives scores z_s. Each learns from the labels and from the other:

    L_s = (CE(z_s, y) + KL(z_t || z_s)) / 2          trains A_s
    L_c = (CE(z_t, y) + KL(z_s || z_t)) / 2          trains A_c

Whoever is the teacher gets no gradient, and the parameters of both losses are disjoint, so one step
on L_s + L_c is what the paper does in two. A client predicts with (A_c + A_s) / 2. The bottlenecks
read the block's `ln_1`, as pFedMMA's do, and start by adding nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.adapters.dual import DualAdapter
from pfedmma_deploy.adapters.graph_form import GraphForm, multimodal_form
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.methods.base import Batch, ClientRun, Method, Tensors
from pfedmma_deploy.methods.distill import divergence, hooked_logits
from pfedmma_deploy.methods.ranges import at_least
from pfedmma_deploy.types import TOWERS


@dataclass(frozen=True)
class FedDATParameters:
    """Hyper-parameters."""

    reduction: int = 16
    """What the token width is divided by inside a bottleneck."""

    def __post_init__(self) -> None:
        at_least("reduction", self.reduction, 1)


def build(
    backbone: Backbone, parameters: FedDATParameters, generator: torch.Generator
) -> DualAdapter:
    """Both bottlenecks in every block of both towers."""
    return DualAdapter(
        widths={tower: backbone.width(tower) for tower in TOWERS},
        depths={tower: backbone.depth(tower) for tower in TOWERS},
        reduction=parameters.reduction,
        generator=generator,
    )


def loss(backbone: Backbone, adapter: Adapter, batch: Batch) -> Tensor:
    """L_s + L_c of a batch."""
    assert isinstance(adapter, DualAdapter)
    teacher = hooked_logits(backbone, adapter.teacher_hook(batch.received), batch)
    student = hooked_logits(backbone, adapter.shared_hook, batch)
    return mutual_loss(student, teacher, batch.labels.to(student.device))


def mutual_loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """L_s + L_c of the scores z_s and z_t [B, C] and the labels [B]."""
    of_shared = F.cross_entropy(student, labels) + divergence(student, teacher)
    of_local = F.cross_entropy(teacher, labels) + divergence(teacher, student)
    return of_shared / 2 + of_local / 2


def train(run: ClientRun) -> float:
    """Local epochs beside the frozen copy, which is put where the backbone is once."""
    run.received = {n: value.to(run.backbone.device) for n, value in run.received.items()}
    return run.fit()


def graph(tensors: Tensors, parameters: FedDATParameters) -> GraphForm:
    """Both bottlenecks of a block as one of pFedMMA's adapters, s = 1/2.

    The bottlenecks stand side by side, the projection between down and up is the identity (what has
    passed one ReLU passes another as it is), and the narrower tower is filled up with zeros.
    """
    down = [name for name in tensors if name.startswith("shared.") and "down.bias" in name]
    layers = [name.split(".")[1:3] for name in down]
    if not layers:
        raise KeyError("shared.image.0.down.weight")
    width = 2 * max(len(tensors[name]) for name in down)
    found: Tensors = {}
    for tower, block in layers:
        layer = f"{tower}.{block}"
        for name in ("down.weight", "down.bias", "up.weight"):
            sides = [tensors[f"{side}.{layer}.{name}"] for side in ("shared", "local")]
            dim = int(name == "up.weight")
            joined = torch.cat(sides, dim=dim)
            fill = [*joined.shape]
            fill[dim] = width - joined.shape[dim]
            found[f"{layer}.{name}"] = torch.cat([joined, joined.new_zeros(fill)], dim=dim)
        sides = [tensors[f"{side}.{layer}.up.bias"] for side in ("shared", "local")]
        found[f"{layer}.up.bias"] = sides[0] + sides[1]
    for pair in range(1 + max(int(block) for _, block in layers)):
        found[f"pair.{pair}.weight"] = torch.eye(width)
        found[f"pair.{pair}.bias"] = torch.zeros(width)
    return multimodal_form(found, width, 0.5)


FEDDAT = Method(
    name="feddat",
    paper="FedDAT, arXiv 2308.12305",
    trained="two parallel adapters in every block of both towers",
    shared="one of the two",
    parameters=FedDATParameters,
    build=build,
    graph=graph,
    loss=loss,
    local=train,
    personalize=train,
    defaults=MappingProxyType({"optimizer": "adamw", "lr": 1e-4}),
)
