"""Local, base and novel accuracy of zero-shot CLIP and of every client's own model.

The metrics of the field (pFedMMA, arXiv 2507.05394, section 5): *local* is accuracy on test images
of the client's own classes, *base* on all base test images, both scored against all base names;
*novel* on all novel test images, scored among the novel names. Text features are rebuilt with each
client's adapter, at every evaluation. Means over clients are unweighted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pfedmma_deploy.backbone.clip import Backbone, BlockHook
from pfedmma_deploy.data.pixels import PixelLoader
from pfedmma_deploy.data.prompts import build_prompts
from pfedmma_deploy.types import ClientData, Example, Federation

BATCH = 64
"""Larger ones are slower on a CPU: their activations are given back to the system every time."""


@dataclass(frozen=True)
class Accuracy:
    """Percent; None where there is nothing to measure it on."""

    local: float | None
    base: float | None
    novel: float | None

    @property
    def hm2(self) -> float | None:
        """Harmonic mean of base and novel."""
        return harmonic_mean((self.base, self.novel))

    @property
    def hm3(self) -> float | None:
        """Harmonic mean of local, base and novel."""
        return harmonic_mean((self.local, self.base, self.novel))

    def to_dict(self) -> dict[str, float | None]:
        """The five figures by name."""
        return {
            "local": self.local,
            "base": self.base,
            "novel": self.novel,
            "hm2": self.hm2,
            "hm3": self.hm3,
        }


def harmonic_mean(values: Sequence[float | None]) -> float | None:
    """N / sum(1 / v); 0 where one is 0, None where one is not measured."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    if min(known) <= 0:
        return 0.0
    return len(known) / sum(1 / value for value in known)


def mean_accuracy(accuracies: Iterable[Accuracy]) -> Accuracy:
    """Unweighted means over clients, of those that have the figure."""
    rows = list(accuracies)

    def mean(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    return Accuracy(
        local=mean(row.local for row in rows),
        base=mean(row.base for row in rows),
        novel=mean(row.novel for row in rows),
    )


def top1_accuracy(images: Tensor, texts: Tensor, rows: Tensor) -> float:
    """Percent of images [N, D] whose most similar text [C, D] is the row given, rows int64 [N]."""
    return float((images @ texts.T).argmax(dim=1).eq(rows.to(images.device)).double().mean() * 100)


@torch.inference_mode()
def encode_examples(
    backbone: Backbone, pixels: PixelLoader, examples: Sequence[Example], hook: BlockHook | None
) -> Tensor:
    """Image features of many examples in batches, [N, D]."""
    parts = [
        backbone.encode_image(torch.from_numpy(pixels.load(examples[i : i + BATCH])), hook)
        for i in range(0, len(examples), BATCH)
    ]
    return torch.cat(parts) if parts else torch.empty(0, backbone.embed_dim)


@torch.inference_mode()
def encode_names(
    backbone: Backbone, names: Sequence[str], template: str, hook: BlockHook | None
) -> Tensor:
    """Text features of class names in a prompt, [C, D]."""
    return backbone.encode_text(backbone.tokenize(build_prompts(names, template)), hook)


class Scorer:
    """Scores any model on the test images of a federation."""

    def __init__(
        self, backbone: Backbone, federation: Federation, pixels: PixelLoader, template: str
    ) -> None:
        self.backbone = backbone
        self.federation = federation
        self.pixels = pixels
        self.template = template

    def score(self, hook: BlockHook | None, clients: Sequence[ClientData]) -> list[Accuracy]:
        """Accuracy of one model for each of the clients: base and novel are the same for all."""
        base = self.federation.base
        examples = unique([*self.federation.base_test, *(e for c in clients for e in c.test)])
        features = self._encode(examples, hook)
        row_of = {example.key: i for i, example in enumerate(examples)}
        texts = encode_names(self.backbone, self.federation.names(base), self.template, hook)

        def accuracy(chosen: Sequence[Example]) -> float | None:
            if not chosen:
                return None
            picked = features[[row_of[example.key] for example in chosen]]
            rows = torch.tensor([base.index(example.label) for example in chosen])
            return top1_accuracy(picked, texts, rows)

        on_base, on_novel = accuracy(self.federation.base_test), self._novel(hook)
        return [Accuracy(accuracy(client.test), on_base, on_novel) for client in clients]

    def _novel(self, hook: BlockHook | None) -> float | None:
        novel, examples = self.federation.novel, self.federation.novel_test
        if not examples:
            return None
        features = self._encode(examples, hook)
        texts = encode_names(self.backbone, self.federation.names(novel), self.template, hook)
        rows = torch.tensor([novel.index(example.label) for example in examples])
        return top1_accuracy(features, texts, rows)

    def _encode(self, examples: Sequence[Example], hook: BlockHook | None) -> Tensor:
        return encode_examples(self.backbone, self.pixels, examples, hook)


def unique(examples: Iterable[Example]) -> list[Example]:
    """Each example once, in order of first appearance."""
    return list({example.key: example for example in examples}.values())
