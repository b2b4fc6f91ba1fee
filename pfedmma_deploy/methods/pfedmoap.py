"""pFedMoAP: a personal mixture of adaptive prompts (Luo et al., arXiv 2410.10114, ICLR 2025).

The server averages nothing. It keeps the last prompt of every client and sends each client, as
frozen experts, those of the K other clients whose prompts are nearest to its own (Euclidean
distance; equal distances in the order of their ids). The client trains its own prompt and a gate
between the prompts, and uploads its prompt. Only clients that have trained are experts: in the
first round there are none, and every client trains its prompt alone. A client that has not trained
has the common initial prompt, and gets experts by it.

Section 3: let x be an image's feature, t_0 the feature of a class behind the local prompt and
t_1 .. t_E those behind the experts' prompts, all L2-normalised. For the gate every feature is
reduced to g numbers by taking every stride-th one:

    gated = W_o concat_h( softmax_e(s * <W_q x', W_k t_e'>_h) W_v t_e' ) + b_o        e = 0 .. E
    logit = lambda * scale * <x, t_0> + scale * <x', gated>

with a' for the reduced a. s = 10 takes the place of the usual 1/sqrt(g/heads). Without any expert
the logit is scale * <x, t_0>: there is nothing to choose from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from pfedmma_deploy.adapters.base import Adapter, new_linear
from pfedmma_deploy.adapters.prompts import (
    encode_context,
    encode_contexts,
    new_vectors,
    require_room,
)
from pfedmma_deploy.backbone.clip import Backbone, ClassTexts
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.methods.aggregation import Aggregator
from pfedmma_deploy.methods.base import ClientRun, Method, Parameters, Tensors, Update
from pfedmma_deploy.types import Scope, Tower


@dataclass(frozen=True)
class PFedMoAPParameters(Parameters):
    """Hyper-parameters and their symbols in the paper."""

    context_vectors: Annotated[int, Field(ge=1)] = 16
    """Learned vectors before a class name."""
    num_experts: Annotated[int, Field(ge=1)] = 9
    """Prompts of other clients at most; with the client's own these are the paper's 10 experts."""
    gating_dim: Annotated[int, Field(ge=1)] = 128
    """d_gating, the width to which features are reduced for the gate."""
    gating_heads: Annotated[int, Field(ge=1)] = 8
    """Heads of the gate's attention."""
    gating_scale: Annotated[float, Field(gt=0)] = 10.0
    """Factor on the products of queries and keys."""
    local_weight: Annotated[float, Field(ge=0)] = 0.5
    """lambda, the weight of the local prompt's own logits."""


class Gate(nn.Module):
    """Attention of an image over the experts of each class.

    Args:
        embed_dim: D, width of the features.
        gating_dim: the width that they are reduced to. The stride is embed_dim // gating_dim, or 1
            where the features are narrower; g is what it leaves, 128 for D = 512 and for D = 384.
        heads: heads; where g is no multiple of it, the next smaller number that divides g.
        scaling: s.
        generator: drives the initialisation.
    """

    def __init__(
        self,
        embed_dim: int,
        gating_dim: int,
        heads: int,
        scaling: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.stride = max(1, embed_dim // gating_dim)
        width = len(range(0, embed_dim, self.stride))
        self.heads = next(h for h in range(min(heads, width), 0, -1) if width % h == 0)
        self.scaling = scaling
        self.query = new_linear(width, width, generator)
        self.key = new_linear(width, width, generator)
        self.value = new_linear(width, width, generator)
        self.out = new_linear(width, width, generator)

    def reduce(self, features: Tensor) -> Tensor:
        """[..., D] -> [..., g]."""
        return features[..., :: self.stride]

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        """Reduced images [B, g] and experts [C, 1 + E, g] -> gated features [B, C, g]."""
        q = self._split(self.query(images))
        k, v = self._split(self.key(texts)), self._split(self.value(texts))
        scores = self.scaling * torch.einsum("bhd,cehd->bche", q, k)
        gated = torch.einsum("bche,cehd->bchd", scores.softmax(dim=-1), v)
        mixed: Tensor = self.out(gated.flatten(-2))
        return mixed

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1)


class MixedPrompts(Adapter):
    """A context `ctx` [M, d], up to K frozen ones `expert.{k}` and the gate's four layers.

    `present` [K] is 1 where an expert is one and 0 where its place is empty. The server sets the
    experts and `present`; the gate stays with the client.

    Args:
        backbone: tells the widths and the number of tokens.
        parameters: M, K, those of the `Gate`, and lambda.
        generator: drives the initialisation.
    """

    adapts: frozenset[Tower] = frozenset({"text"})
    interpolation = "scores"

    def __init__(
        self, backbone: Backbone, parameters: PFedMoAPParameters, generator: torch.Generator
    ) -> None:
        super().__init__()
        vectors, num_experts = parameters.context_vectors, parameters.num_experts
        require_room(backbone, vectors)
        width = backbone.width("text")
        self.local_weight = parameters.local_weight
        self.ctx = new_vectors(vectors, width, generator=generator)
        empty = (torch.zeros(vectors, width) for _ in range(num_experts))
        self.expert = nn.ParameterList(nn.Parameter(e, requires_grad=False) for e in empty)
        self.present = nn.Parameter(torch.zeros(num_experts), requires_grad=False)
        self.gate = Gate(
            backbone.embed_dim,
            parameters.gating_dim,
            parameters.gating_heads,
            parameters.gating_scale,
            generator,
        )
        self._held: tuple[ClassTexts, Tensor] | None = None

    def encode_text(self, backbone: Backbone, texts: ClassTexts) -> Tensor:
        """Features behind the local prompt and behind each expert, [C, 1 + E, D]."""
        own = encode_context(backbone, texts, self.ctx).unsqueeze(1)
        if self._held is not None and self._held[0] is texts:
            return torch.cat([own, self._held[1]], dim=1)
        return torch.cat([own, self._encode_experts(backbone, texts)], dim=1)

    @contextmanager
    def experts_held(self, backbone: Backbone, texts: ClassTexts) -> Iterator[None]:
        """Inside, the experts' features of these texts are computed once: experts do not learn."""
        self._held = (texts, self._encode_experts(backbone, texts))
        try:
            yield
        finally:
            self._held = None

    @torch.no_grad()
    def _encode_experts(self, backbone: Backbone, texts: ClassTexts) -> Tensor:
        chosen = [e for e, there in zip(self.expert, self.present.tolist(), strict=True) if there]
        if not chosen:
            return torch.empty(len(texts.names), 0, backbone.embed_dim, device=self.ctx.device)
        return encode_contexts(backbone, texts, torch.stack(chosen))

    def logits(self, images: Tensor, texts: Tensor, logit_scale: float) -> Tensor:
        """Class scores [B, C] of [B, D] and [C, 1 + E, D]."""
        images, texts = images.float(), texts.float()
        own = logit_scale * images @ texts[:, 0].T
        if texts.shape[1] == 1:
            return own
        reduced = self.gate.reduce(images)
        gated = self.gate(reduced, self.gate.reduce(texts))
        return self.local_weight * own + logit_scale * torch.einsum("bg,bcg->bc", reduced, gated)

    def scopes(self) -> dict[str, Scope]:
        """The prompt travels, the experts come from the server, the gate is local."""
        frozen = {f"expert.{k}" for k in range(len(self.expert))} | {"present"}
        return {
            name: Scope.SHARED if name == "ctx" else Scope.FROZEN if name in frozen else Scope.LOCAL
            for name, _ in self.named_parameters()
        }


class KeepPrompts(Aggregator):
    """Keeps `initial`, the common first prompt, and `prompt.<client>`, [M, d] each."""

    def combine(self, updates: Sequence[Update], server: Tensors) -> Tensors:
        """Keep every prompt that was sent; those of clients that were not chosen stay."""
        # In main memory, as those read back from disk: prompts are compared with one another.
        sent = {_key(update.client): update.shared["ctx"].cpu() for update in updates}
        return {**server, **sent}


class PFedMoAP(Method[MixedPrompts, PFedMoAPParameters]):
    """A local prompt, and a gate between it and the prompts of other clients."""

    name = "pfedmoap"
    paper = "pFedMoAP, arXiv 2410.10114 (ICLR 2025)"
    trained = "a local context and a gate between it and other clients' contexts"
    shared = "every client's context, as an expert for the others"
    Parameters = PFedMoAPParameters
    export_blocker = (
        "a class score mixes text features by attention from the image, and is not the cosine "
        "of two features that a bundle computes"
    )

    def build(self, backbone: Backbone, generator: torch.Generator) -> MixedPrompts:
        """A prompt, empty places for the experts, and the gate."""
        return MixedPrompts(backbone, self.parameters, generator)

    def train_client(self, run: ClientRun[MixedPrompts]) -> float:
        """Local training, the experts' features computed once."""
        with run.adapter.experts_held(run.backbone, run.prompts.texts):
            return run.fit()

    def start(self, adapter: MixedPrompts, clients: Sequence[str]) -> Tensors:
        """The common initial prompt, and no client's yet."""
        return {"initial": adapter.ctx.detach().cpu().clone()}

    def aggregator(self, rule: str | None = None) -> Aggregator:
        """Prompts are kept, not combined."""
        if rule is not None:
            raise UsageError(
                "pfedmoap passes clients' prompts on and combines nothing: leave out --aggregate."
            )
        return KeepPrompts()

    def distribute(self, server: Tensors, client: str) -> Tensors:
        """A client's own prompt, and those of the nearest others as experts."""
        own = server.get(_key(client), server["initial"])
        others = {
            name: value
            for name, value in server.items()
            if name.startswith(_key("")) and name != _key(client)
        }
        nearest = sorted(others, key=lambda name: (float((others[name] - own).norm()), name))
        chosen = nearest[: self.parameters.num_experts]
        present = torch.zeros(self.parameters.num_experts)
        present[: len(chosen)] = 1
        experts = {f"expert.{k}": others[name] for k, name in enumerate(chosen)}
        return {"ctx": own, "present": present, **experts}


def _key(client: str) -> str:
    return f"prompt.{client}"
