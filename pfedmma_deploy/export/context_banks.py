"""Learned words in a prompt, one row of vectors per client."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ContextBank"]


class ContextBank(nn.Module):
    """Puts a client's vectors in the place of the words that stand for them.

    Only of clients, and only where the prompt has the placeholder: the words of client 0, and any
    text that is written out, are read as they are.

    Args:
        vectors: [clients + 1, M, d]; the m-th belongs to position 1 + m.
        placeholder: token id of the word that stands for a vector.
    """

    def __init__(self, vectors: Tensor, placeholder: int) -> None:
        super().__init__()
        self.placeholder = placeholder
        self.vectors = nn.Buffer(vectors)

    def forward(self, x: Tensor, input_ids: Tensor, client: Tensor) -> Tensor:
        """Embeddings [N, context, d] of token ids [N, context], without positions yet."""
        end = 1 + self.vectors.shape[1]
        learned = (input_ids[:, 1:end] == self.placeholder) & (client > 0).unsqueeze(1)
        own = self.vectors.index_select(0, client)
        words = torch.where(learned.unsqueeze(-1), own, x[:, 1:end])
        return torch.cat([x[:, :1], words, x[:, end:]], dim=1)
