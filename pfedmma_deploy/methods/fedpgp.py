"""FedPGP: generalization and personalization in harmony (Cui et al., arXiv 2405.09771, ICML 2024).

The context is ctx = sigma + U V: a global part sigma that the server averages and a low-rank part
that stays with the client. Beside the cross-entropy a client minimises a prompt-wise contrast,
meaned over the classes, between a positive pair and a negative one (sim is the cosine):

    L_con = -log( exp(sim(a, p) / tau) / (exp(sim(a, p) / tau) + exp(sim(a, n) / tau)) )
    L = L_ce + mu L_con

The positive p is the text feature of the hand-written prompt. With `anchor = "personal"` a is the
feature behind ctx and n the one behind sigma; with `anchor = "global"`, as in the code that the
authors released, a is the feature behind sigma and n the one behind ctx.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.adapters.graph_form import GraphForm, context_form
from pfedmma_deploy.adapters.low_rank_prompt import LowRankPrompt
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.methods.base import Batch, Method, Tensors
from pfedmma_deploy.methods.ranges import above, at_least, one_of

ANCHORS = ("personal", "global")


@dataclass(frozen=True)
class FedPGPParameters:
    """Hyper-parameters and their symbols in the paper."""

    context_vectors: int = 16
    """Learned vectors before a class name."""
    rank: int = 8
    """b, the rank of the personal part."""
    contrastive_weight: float = 0.5
    """mu, the weight of the contrast."""
    temperature: float = 0.5
    """tau of the contrast."""
    anchor: str = "personal"
    """What is pulled towards the hand-written prompt: the personal context, or the global one."""

    def __post_init__(self) -> None:
        at_least("context_vectors", self.context_vectors, 1)
        at_least("rank", self.rank, 1)
        at_least("contrastive_weight", self.contrastive_weight, 0)
        above("temperature", self.temperature, 0)
        one_of("anchor", self.anchor, ANCHORS)


def build(backbone: Backbone, parameters: FedPGPParameters, generator: torch.Generator) -> Adapter:
    """sigma, U and V, all N(0, 0.02^2)."""
    return LowRankPrompt(
        backbone,
        parameters.context_vectors,
        parameters.rank,
        generator,
        contrastive_weight=parameters.contrastive_weight,
        temperature=parameters.temperature,
        anchor=parameters.anchor,
    )


def contrast(anchor: Tensor, positive: Tensor, negative: Tensor, temperature: float) -> Tensor:
    """L_con of L2-normalised features [C, D] each; a scalar."""
    near = (anchor * positive).sum(dim=-1) / temperature
    far = (anchor * negative).sum(dim=-1) / temperature
    # -log(e^near / (e^near + e^far)) = log(1 + e^(far - near))
    return F.softplus(far - near).mean()


def loss(backbone: Backbone, adapter: Adapter, batch: Batch) -> Tensor:
    """Cross-entropy and the contrast; a scalar."""
    assert isinstance(adapter, LowRankPrompt)
    images = adapter.encode_image(backbone, batch.pixels)
    personal, shared = adapter.encode_both(backbone, batch.texts)
    written = backbone.encode_text(batch.texts.prompts)
    scores = adapter.logits(images, personal, batch.logit_scale)
    value = F.cross_entropy(scores, batch.labels.to(scores.device))
    anchor, negative = (shared, personal) if adapter.anchor == "global" else (personal, shared)
    term = contrast(anchor, written, negative, adapter.temperature)
    return value + adapter.contrastive_weight * term


def graph(tensors: Tensors, parameters: FedPGPParameters) -> GraphForm:
    """The personal context, sigma + u v."""
    return context_form(tensors["sigma"] + tensors["u"] @ tensors["v"])


FEDPGP = Method(
    name="fedpgp",
    paper="FedPGP, arXiv 2405.09771 (ICML 2024)",
    trained="a global context and a low-rank personal part of it",
    shared="the global context",
    parameters=FedPGPParameters,
    build=build,
    graph=graph,
    loss=loss,
)
