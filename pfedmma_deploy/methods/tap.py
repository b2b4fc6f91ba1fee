"""TAP: two-stage adaptive personalization, on the low-rank components of CLIP.

arXiv 2509.26524: a faithful realisation on CLIP, not a replication of the paper's models. Clients
differ in data, tasks and modalities. The server holds the union of the components image/shared,
text/shared, image/<task>, text/<task>; a client downloads, trains and uploads only those it uses,
and keeps beside this federated model a personal one that never leaves.

Stage 1, whenever a client takes part (`tap_client`): train the federated model; per task, if
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

from collections.abc import Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.adapters.components import COMPONENTS, SHARED_PART, TASKS
from pfedmma_deploy.adapters.graph_form import GraphForm, below, low_rank_form
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.methods.base import Method, Tensors, Update, weighted_mean
from pfedmma_deploy.methods.tap_client import (
    TAPAdapter,
    TAPParameters,
    components_of,
    distil,
    personal_loss,
    train,
)
from pfedmma_deploy.types import TOWERS, ClientData


def build(backbone: Backbone, parameters: TAPParameters, generator: torch.Generator) -> TAPAdapter:
    """The union of all components, as two equal models."""
    return TAPAdapter(
        widths={tower: backbone.width(tower) for tower in TOWERS},
        depths={tower: backbone.depth(tower) for tower in TOWERS},
        rules=parameters,
        generator=generator,
    )


def held(tensors: Tensors, adapter: Adapter, client: ClientData) -> Tensors:
    """Of some tensors of the federated model, those that a client with these data holds."""
    assert isinstance(adapter, TAPAdapter)
    names = set(adapter.names("federated", components_of(client, adapter.rules)))
    return {name: value for name, value in tensors.items() if name in names}


def upload(adapter: Adapter, client: ClientData) -> Tensors:
    """The federated model's components that the client holds; the personal model stays."""
    assert isinstance(adapter, TAPAdapter)
    values = dict(adapter.named_parameters())
    sent = adapter.names("federated", COMPONENTS)
    return held({name: values[name].detach().clone() for name in sent}, adapter, client)


def aggregate(updates: Sequence[Update], server: Tensors) -> Tensors:
    """Each component's weighted mean over its holders; what nobody sent stays as it is."""
    state = dict(server)
    for name in server:
        holders = [
            Update(update.client, {name: update.shared[name]}, update.num_examples)
            for update in updates
            if name in update.shared
        ]
        if holders:
            state |= weighted_mean(holders)
    return state


def graph(tensors: Tensors, parameters: TAPParameters) -> GraphForm:
    """The personal model for `classify` (or the only task of a client that knows another).

    Its two components side by side; one that the client does not hold is zero.
    """
    flags = tensors["holds"].tolist()
    held = {one for one, flag in zip(COMPONENTS, flags, strict=True) if flag}
    known = [task for task in TASKS if any(part == task for _, part in held)]
    products: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for part in (SHARED_PART, (known or TASKS)[0]):
        for tower in TOWERS:
            own = below(tensors, f"personal.{tower}.{part}.")
            if not own:
                raise KeyError(f"personal.{tower}.{part}.0.q.A")
            for name in [name.removesuffix(".A") for name in own if name.endswith(".A")]:
                a, b = own[f"{name}.A"], own[f"{name}.B"]
                pair = a, b if (tower, part) in held else torch.zeros_like(b)
                products.setdefault(f"{tower}.{name}", []).append(pair)
    return low_rank_form(products, parameters.alpha / parameters.rank / 2)


TAP = Method(
    name="tap",
    paper="TAP, arXiv 2509.26524",
    trained="two models of low-rank components per tower and task",
    shared="the components that a client holds, of one of the models",
    folds=True,
    parameters=TAPParameters,
    build=build,
    graph=graph,
    loss=personal_loss,
    local=train,
    personalize=distil,
    is_two_stage=True,
    download=held,
    upload=upload,
    aggregate=aggregate,
    defaults=MappingProxyType({"optimizer": "adamw", "lr": 3e-4, "weight_decay": 0.01}),
)
