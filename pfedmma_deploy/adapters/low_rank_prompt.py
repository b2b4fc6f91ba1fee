"""A shared context with a low-rank personal part: the prompt of FedPGP."""

from __future__ import annotations

import torch
from torch import Tensor

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.adapters.prompts import encode_contexts, new_vectors, require_room
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.backbone.texts import ClassTexts
from pfedmma_deploy.types import Scope, Tower


class LowRankPrompt(Adapter):
    """ctx = sigma + u v: sigma [M, d] is shared, u [M, b] and v [b, d] stay with the client.

    All three start from N(0, 0.02^2), so that at first the personal part hardly counts.

    Args:
        backbone: tells the width d and the number of tokens.
        vectors: M.
        rank: b.
        generator: drives the initialisation.
        contrastive_weight, temperature, anchor: what FedPGP's loss wants to know.
    """

    adapts: frozenset[Tower] = frozenset({"text"})

    def __init__(
        self,
        backbone: Backbone,
        vectors: int,
        rank: int,
        generator: torch.Generator,
        *,
        contrastive_weight: float,
        temperature: float,
        anchor: str,
    ) -> None:
        super().__init__()
        require_room(backbone, vectors)
        width = backbone.width("text")
        self.contrastive_weight = contrastive_weight
        self.temperature = temperature
        self.anchor = anchor
        self.sigma = new_vectors(vectors, width, generator=generator)
        self.u = new_vectors(vectors, rank, generator=generator)
        self.v = new_vectors(rank, width, generator=generator)

    def encode_text(self, backbone: Backbone, texts: ClassTexts) -> Tensor:
        """Features of class names behind the personal context, [C, D], L2-normalised."""
        return encode_contexts(backbone, texts, self.personal.unsqueeze(0))[:, 0]

    def encode_both(self, backbone: Backbone, texts: ClassTexts) -> tuple[Tensor, Tensor]:
        """Features behind the personal and behind the shared context, [C, D] each."""
        contexts = torch.stack([self.personal, self.sigma])
        personal, shared = encode_contexts(backbone, texts, contexts).unbind(1)
        return personal, shared

    @property
    def personal(self) -> Tensor:
        """sigma + u v, [M, d]."""
        return self.sigma + self.u @ self.v

    def scopes(self) -> dict[str, Scope]:
        """sigma is shared, the factors are local."""
        return {"sigma": Scope.SHARED, "u": Scope.LOCAL, "v": Scope.LOCAL}
