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
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pfedmma_deploy.adapters.prompts import (
    PromptAdapter,
    encode_contexts,
    new_vectors,
    require_room,
)
from pfedmma_deploy.backbone.clip import Backbone, ClassTexts
from pfedmma_deploy.methods.base import Batch, Method, Parameters
from pfedmma_deploy.types import Scope


@dataclass(frozen=True)
class FedPGPParameters(Parameters):
    """Hyper-parameters and their symbols in the paper."""

    context_vectors: Annotated[int, Field(ge=1)] = 16
    """Learned vectors before a class name."""
    rank: Annotated[int, Field(ge=1)] = 8
    """b, the rank of the personal part."""
    contrastive_weight: Annotated[float, Field(ge=0)] = 0.5
    """mu, the weight of the contrast."""
    temperature: Annotated[float, Field(gt=0)] = 0.5
    """tau of the contrast."""
    anchor: Literal["personal", "global"] = "personal"
    """What is pulled towards the hand-written prompt: the personal context, or the global one."""


class LowRankContext(PromptAdapter):
    """ctx = sigma + u v: sigma [M, d] is shared, u [M, b] and v [b, d] stay with the client.

    All three start from N(0, 0.02^2), so that at first the personal part hardly counts.
    """

    def __init__(
        self, backbone: Backbone, parameters: FedPGPParameters, generator: torch.Generator
    ) -> None:
        super().__init__()
        vectors, rank = parameters.context_vectors, parameters.rank
        require_room(backbone, vectors)
        width = backbone.width("text")
        self.sigma = new_vectors(vectors, width, generator=generator)
        self.u = new_vectors(vectors, rank, generator=generator)
        self.v = new_vectors(rank, width, generator=generator)

    @property
    def context(self) -> Tensor:
        """sigma + u v, [M, d]."""
        return self.sigma + self.u @ self.v

    def encode_both(self, backbone: Backbone, texts: ClassTexts) -> tuple[Tensor, Tensor]:
        """Features behind the personal and behind the shared context, [C, D] each."""
        contexts = torch.stack([self.context, self.sigma])
        personal, shared = encode_contexts(backbone, texts, contexts).unbind(1)
        return personal, shared

    def scopes(self) -> dict[str, Scope]:
        """sigma is shared, the factors are local."""
        return {"sigma": Scope.SHARED, "u": Scope.LOCAL, "v": Scope.LOCAL}


def contrast(anchor: Tensor, positive: Tensor, negative: Tensor, temperature: float) -> Tensor:
    """L_con of L2-normalised features [C, D] each; a scalar."""
    near = (anchor * positive).sum(dim=-1) / temperature
    far = (anchor * negative).sum(dim=-1) / temperature
    # -log(e^near / (e^near + e^far)) = log(1 + e^(far - near))
    return F.softplus(far - near).mean()


class FedPGP(Method[LowRankContext, FedPGPParameters]):
    """A global context and a low-rank personal part of it."""

    name = "fedpgp"
    paper = "FedPGP, arXiv 2405.09771 (ICML 2024)"
    trained = "a global context and a low-rank personal part of it"
    shared = "the global context"
    Parameters = FedPGPParameters

    def build(self, backbone: Backbone, generator: torch.Generator) -> LowRankContext:
        """sigma, U and V."""
        return LowRankContext(backbone, self.parameters, generator)

    def loss(self, backbone: Backbone, adapter: LowRankContext, batch: Batch) -> Tensor:
        """Cross-entropy and the contrast; a scalar."""
        images = adapter.encode_image(backbone, batch.pixels)
        personal, shared = adapter.encode_both(backbone, batch.texts)
        written = backbone.encode_text(batch.texts.prompts)
        scores = adapter.logits(images, personal, batch.logit_scale)
        value = F.cross_entropy(scores, batch.labels.to(scores.device))
        is_global = self.parameters.anchor == "global"
        anchor, negative = (shared, personal) if is_global else (personal, shared)
        term = contrast(anchor, written, negative, self.parameters.temperature)
        return value + self.parameters.contrastive_weight * term
