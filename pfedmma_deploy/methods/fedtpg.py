"""FedTPG: text-driven prompt generation (Qiu et al., arXiv 2310.06123, ICLR 2024).

Clients learn together not a prompt but a network that makes one from the names of a task's classes,
by the cross-entropy; the server averages the network, every client counting the same whatever its
number of images. Section 4: let T [C, D] be the frozen text features of the bare class names of the
task and Q [M, d] learned queries:

    A = MultiHead( LN(Q) W_q, LN(T) W_k, LN(T) W_v ) W_o
    context = A + W_2 geglu(W_1 LN(A))        geglu(a, b) = a * gelu(b)

The context depends on all the names of a task together, so novel names get one of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma_deploy.adapters.base import Adapter, new_linear
from pfedmma_deploy.adapters.prompts import encode_context, new_vectors, require_room
from pfedmma_deploy.backbone.clip import Backbone, ClassTexts
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.methods.base import Method, Parameters
from pfedmma_deploy.types import Scope, Tower

EXPANSION = 4
"""Width of the feed-forward part over d."""


@dataclass(frozen=True)
class FedTPGParameters(Parameters):
    """Hyper-parameters and their symbols in the paper."""

    context_vectors: Annotated[int, Field(ge=1)] = 4
    """m, generated vectors before a class name."""
    heads: Annotated[int, Field(ge=1)] = 4
    """Heads of the cross-attention."""


class ContextGenerator(nn.Module):
    """Queries `queries` [M, d] that attend to class features [C, D].

    Args:
        width: d, a multiple of `heads`.
        embed_dim: D.
        vectors: M.
        heads: heads of the attention.
        generator: drives the initialisation.
    """

    def __init__(
        self, width: int, embed_dim: int, vectors: int, heads: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.heads = heads
        self.queries = new_vectors(vectors, width, generator=generator)
        self.norm_queries = nn.LayerNorm(width)
        self.norm_names = nn.LayerNorm(embed_dim)
        self.query = new_linear(width, width, generator)
        self.key = new_linear(embed_dim, width, generator)
        self.value = new_linear(embed_dim, width, generator)
        self.out = new_linear(width, width, generator)
        self.norm_out = nn.LayerNorm(width)
        self.expand = new_linear(width, 2 * EXPANSION * width, generator)
        self.contract = new_linear(EXPANSION * width, width, generator)

    def forward(self, names: Tensor) -> Tensor:
        """Features of class names [C, D] -> context vectors [M, d]."""
        names = self.norm_names(names)
        q = self._split(self.query(self.norm_queries(self.queries)))
        k, v = self._split(self.key(names)), self._split(self.value(names))
        scores = torch.einsum("mhd,chd->hmc", q, k) * q.shape[-1] ** -0.5
        attended = torch.einsum("hmc,chd->mhd", scores.softmax(dim=-1), v)
        a = self.out(attended.flatten(-2))
        left, right = self.expand(self.norm_out(a)).chunk(2, dim=-1)
        context: Tensor = a + self.contract(left * F.gelu(right))
        return context

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1)


class GeneratedContext(Adapter):
    """The generator `net` before the class names, all of it shared.

    Args:
        backbone: tells the widths and the number of tokens.
        parameters: M, and the heads of the attention.
        generator: drives the initialisation.

    Raises:
        UsageError: heads that do not divide the width of the text tower.
    """

    adapts: frozenset[Tower] = frozenset({"text"})
    interpolation = "scores"
    reads_names_together = True

    def __init__(
        self, backbone: Backbone, parameters: FedTPGParameters, generator: torch.Generator
    ) -> None:
        super().__init__()
        vectors, heads = parameters.context_vectors, parameters.heads
        require_room(backbone, vectors)
        width = backbone.width("text")
        if width % heads:
            raise UsageError(
                f"heads must divide the width of the text tower of {backbone.name}, {width}: "
                f"{heads} does not."
            )
        self.net = ContextGenerator(width, backbone.embed_dim, vectors, heads, generator)

    def encode_text(self, backbone: Backbone, texts: ClassTexts) -> Tensor:
        """Features of class names behind the context made from them, [C, D], L2-normalised."""
        return encode_context(backbone, texts, self.net(backbone.encode_text(texts.bare)))

    def scopes(self) -> dict[str, Scope]:
        """Everything is shared."""
        return {name: Scope.SHARED for name, _ in self.named_parameters()}


class FedTPG(Method[GeneratedContext, FedTPGParameters]):
    """The generator, all of it shared."""

    name = "fedtpg"
    paper = "FedTPG, arXiv 2310.06123 (ICLR 2024)"
    trained = "a network that makes a context from the class names"
    shared = "the network"
    Parameters = FedTPGParameters
    # The authors' released configuration.
    defaults = MappingProxyType({"lr": 0.003, "weight_decay": 1e-5})
    rule = "uniform-mean"
    export_blocker = (
        "a network makes its context anew from all class names of a task together, and the "
        "text model of a bundle reads one name at a time"
    )

    def build(self, backbone: Backbone, generator: torch.Generator) -> GeneratedContext:
        """The generator."""
        return GeneratedContext(backbone, self.parameters, generator)
