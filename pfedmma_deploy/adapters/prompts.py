"""Learned context vectors before a class name, and what adapters that learn them share.

CoOp (arXiv 2109.01134) replaces the words around a class name by M vectors in the space of token
embeddings, the class token at the end: [SOT][v_1 .. v_M][name .][EOT]. They get the positions of
the words that they replace. Whatever stands behind the end token is cut off, which changes nothing:
the mask is causal and the feature is read at the end token.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pfedmma_deploy.adapters.base import Adapter, BankModule, ExportBanks, mix_features
from pfedmma_deploy.backbone.blocks import TokenHook
from pfedmma_deploy.backbone.clip import Backbone, ClassTexts
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.types import Interpolation, Tower

DEVIATION = 0.02
"""Of the normal distribution that context vectors start from (CoOp, section 3.1)."""


def new_vectors(*shape: int, generator: torch.Generator) -> nn.Parameter:
    """A parameter drawn from N(0, 0.02^2)."""
    return nn.Parameter(torch.empty(*shape).normal_(0, DEVIATION, generator=generator))


def require_room(backbone: Backbone, vectors: int) -> None:
    """Raises `UsageError` where `vectors` leave no place for any class name."""
    # Start, one token of a name, full stop, end.
    most = backbone.context_length - 4
    if vectors > most:
        raise UsageError(
            f"The text tower of {backbone.name} reads {backbone.context_length} tokens: a learned "
            f"context may have {most} vectors at most, not {vectors}."
        )


def encode_contexts(
    backbone: Backbone, texts: ClassTexts, contexts: Tensor, before: TokenHook | None = None
) -> Tensor:
    """Text features of every class name behind every context, L2-normalised.

    Args:
        backbone: the frozen backbone.
        texts: C class names.
        contexts: [P, M, d], d the width of the text tower.
        before: replaces the input of a block (see `Backbone.run_blocks`).

    Returns:
        [C, P, D]

    Raises:
        UsageError: a class name too long to fit behind the contexts.
    """
    count, vectors, width = contexts.shape
    ends = texts.bare.argmax(dim=-1)
    longest = int(ends.max()) + 1
    if longest + vectors > backbone.context_length:
        name = texts.names[int(ends.argmax())]
        room = backbone.context_length - vectors - 2
        raise UsageError(
            f"The class name {name!r} takes {longest - 2} tokens with its full stop, but "
            f"{vectors} context vectors leave {room} of the text tower's "
            f"{backbone.context_length}: shorten the name, or learn fewer vectors."
        )
    words = backbone.embed_tokens(texts.bare[:, :longest]).unsqueeze(1).expand(-1, count, -1, -1)
    placed = contexts.expand(len(words), -1, -1, -1)
    x = torch.cat([words[:, :, :1], placed, words[:, :, 1:]], dim=2).reshape(
        -1, vectors + longest, width
    )
    ends = (ends + vectors).to(backbone.device).repeat_interleave(count)
    x = backbone.run_blocks("text", backbone.add_positions(x), before=before, read=ends)
    features = backbone.pool_text(x, torch.zeros_like(ends))
    return features.view(len(words), count, -1)


def encode_context(
    backbone: Backbone, texts: ClassTexts, context: Tensor, before: TokenHook | None = None
) -> Tensor:
    """Text features behind one context [M, d]: [C, D]; see `encode_contexts`."""
    return encode_contexts(backbone, texts, context.unsqueeze(0), before)[:, 0]


PLACEHOLDER = "*"
"""Stands in a prompt where a learned vector takes the place of a word; one token of CLIP's."""


class PromptAdapter(Adapter):
    """An adapter that is a context [M, d] before every class name; the image tower is frozen."""

    adapts: frozenset[Tower] = frozenset({"text"})
    interpolation: ClassVar[Interpolation] = "features"

    @property
    @abstractmethod
    def context(self) -> Tensor:
        """The client's own context, [M, d]."""

    def encode_text(self, backbone: Backbone, texts: ClassTexts) -> Tensor:
        """Features of class names behind the context, [C, D], L2-normalised."""
        own = encode_context(backbone, texts, self.context)
        if self.strength == 1:
            return own
        return mix_features(backbone.encode_text(texts.prompts), own, self.strength)

    def export_banks(self, backbone: Backbone) -> list[ExportBanks]:
        """The context's vectors."""
        placeholder = int(backbone.tokenize([PLACEHOLDER])[0, 1])
        build = partial(ContextBank, placeholder=placeholder)
        return [ExportBanks("text", "context", {"vectors": self.context.detach()}, build)]

    def export_settings(self) -> dict[str, Any]:
        """The number of vectors, and the prompt in which placeholders stand for them."""
        vectors = len(self.context)
        prompt = " ".join([*[PLACEHOLDER] * vectors, "{}."])
        return {"kind": "context", "vectors": vectors, "prompt": prompt}


class ContextBank(BankModule):
    """Puts a client's vectors in the place of the words that stand for them.

    Only of clients, and only where the prompt has the placeholder: the words of client 0, and any
    text that is written out, are read as they are.

    Args:
        banks: `vectors` [clients + 1, M, d]; the m-th belongs to position 1 + m.
        placeholder: token id of the word that stands for a vector.
    """

    def __init__(self, banks: Mapping[str, Tensor], placeholder: int) -> None:
        super().__init__(banks)
        self.placeholder = placeholder
        self.end = 1 + banks["vectors"].shape[1]

    def forward(self, x: Tensor, input_ids: Tensor, client: Tensor) -> Tensor:
        """Embeddings [N, context, d] of token ids [N, context], without positions yet."""
        end = self.end
        learned = (input_ids[:, 1:end] == self.placeholder) & (client > 0).unsqueeze(1)
        own = self.rows("vectors", client)
        words = torch.where(learned.unsqueeze(-1), own, x[:, 1:end])
        return torch.cat([x[:, :1], words, x[:, end:]], dim=1)
