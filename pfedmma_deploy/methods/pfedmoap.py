"""pFedMoAP: a personal mixture of adaptive prompts (Luo et al., arXiv 2410.10114, ICLR 2025).

The server averages nothing. It keeps the last prompt of every client and sends each client, as
frozen experts, those of the K other clients whose prompts are nearest to its own (Euclidean
distance; equal distances in the order of their ids). The client trains its own prompt and a gate
between the prompts (see `pfedmma_deploy.adapters.experts`), and uploads its prompt. Only clients
that have trained are experts: in the first round there are none, and every client trains its prompt
alone. A client that has not trained has the common initial prompt, and gets experts by it.

The server's state is `initial` [M, d], the common initial prompt, `places` [K], which holds no
more than the number of experts, and `prompt.<client>` [M, d]. A client's own prompt comes back to
it with the experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.adapters.experts import MixedPrompts
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.methods.base import ClientRun, Method, Tensors, Update
from pfedmma_deploy.methods.ranges import above, at_least


@dataclass(frozen=True)
class PFedMoAPParameters:
    """Hyper-parameters and their symbols in the paper."""

    context_vectors: int = 16
    """Learned vectors before a class name."""
    num_experts: int = 9
    """Prompts of other clients at most; with the client's own these are the paper's 10 experts."""
    gating_dim: int = 128
    """d_gating, the width to which features are reduced for the gate."""
    gating_heads: int = 8
    """Heads of the gate's attention."""
    gating_scale: float = 10.0
    """Factor on the products of queries and keys."""
    local_weight: float = 0.5
    """lambda, the weight of the local prompt's own logits."""

    def __post_init__(self) -> None:
        for name in ("context_vectors", "num_experts", "gating_dim", "gating_heads"):
            at_least(name, getattr(self, name), 1)
        above("gating_scale", self.gating_scale, 0)
        at_least("local_weight", self.local_weight, 0)


def build(
    backbone: Backbone, parameters: PFedMoAPParameters, generator: torch.Generator
) -> Adapter:
    """A prompt, empty places for the experts, and the gate."""
    return MixedPrompts(
        backbone,
        parameters.context_vectors,
        parameters.num_experts,
        generator,
        gating_dim=parameters.gating_dim,
        heads=parameters.gating_heads,
        scaling=parameters.gating_scale,
        local_weight=parameters.local_weight,
    )


def train(run: ClientRun) -> float:
    """Local training, the experts' features computed once."""
    assert isinstance(run.adapter, MixedPrompts)
    with run.adapter.experts_held(run.backbone, run.prompts.texts):
        return run.fit()


def start(adapter: Adapter, clients: Sequence[str]) -> Tensors:
    """The common initial prompt, and no client's yet."""
    assert isinstance(adapter, MixedPrompts)
    prompt = adapter.ctx.detach().cpu().clone()
    return {"initial": prompt, "places": torch.zeros(len(adapter.present))}


def aggregate(updates: Sequence[Update], server: Tensors) -> Tensors:
    """Keep every prompt that was sent; those of clients that were not chosen stay."""
    # In main memory, as those read back from disk: prompts are compared with one another.
    sent = {_key(update.client): update.shared["ctx"].cpu() for update in updates}
    return {**server, **sent}


def distribute(server: Tensors, client: str) -> Tensors:
    """A client's own prompt, and those of the nearest others as experts."""
    own = server.get(_key(client), server["initial"])
    others = {
        name: value
        for name, value in server.items()
        if name.startswith(_key("")) and name != _key(client)
    }
    nearest = sorted(others, key=lambda name: (float((others[name] - own).norm()), name))
    chosen = nearest[: len(server["places"])]
    present = torch.zeros_like(server["places"])
    present[: len(chosen)] = 1
    experts = {f"expert.{k}": others[name] for k, name in enumerate(chosen)}
    return {"ctx": own, "present": present, **experts}


def _key(client: str) -> str:
    return f"prompt.{client}"


PFEDMOAP = Method(
    name="pfedmoap",
    paper="pFedMoAP, arXiv 2410.10114 (ICLR 2025)",
    trained="a local context and a gate between it and other clients' contexts",
    shared="every client's context, as an expert for the others",
    obstacle="a class score mixes text features by attention from the image, and is not the cosine "
    "of two features that a bundle computes",
    parameters=PFedMoAPParameters,
    build=build,
    local=train,
    personalize=train,
    start=start,
    aggregate=aggregate,
    distribute=distribute,
)
