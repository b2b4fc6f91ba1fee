"""Local, base and novel accuracy of zero-shot CLIP and of every client's own model.

The metrics of the field (pFedMMA, arXiv 2507.05394, section 5): *local* is accuracy on test images
of the client's own classes, *base* on all base test images, both scored against all base names;
*novel* on all novel test images, scored among the novel names. Text features are rebuilt with each
client's adapter, at every evaluation. Means over clients are unweighted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pfedmma_deploy.adapters.base import Adapter, Frozen
from pfedmma_deploy.backbone.activation_cache import ImageInputs
from pfedmma_deploy.backbone.clip import Backbone, ClassTexts, class_texts, with_activations
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


class Scorer:
    """Scores any model on the test images of a federation.

    With cached activations, clients share the frozen blocks' work, and a method that leaves the
    image tower alone is scored for the price of its texts.
    """

    def __init__(
        self,
        backbone: Backbone,
        federation: Federation,
        images: ImageInputs,
        template: str,
        logit_scale: float,
    ) -> None:
        self.backbone = backbone
        self.federation = federation
        self.images = images
        self.template = template
        self.logit_scale = logit_scale
        self._frozen: dict[tuple[tuple[int, ...], int], ClassTexts] = {}

    def score(self, adapter: Adapter | None, clients: Sequence[ClientData]) -> list[Accuracy]:
        """Accuracy of one model for each of the clients: base and novel are the same for all.

        `adapter` None is zero-shot CLIP.
        """
        adapter = Frozen() if adapter is None else adapter.eval()
        federation = self.federation
        own = [example for client in clients for example in client.test]
        right = self._right(adapter, federation.base, unique([*federation.base_test, *own]))
        right_novel = self._right(adapter, federation.novel, unique(federation.novel_test))

        def accuracy(chosen: Sequence[Example], found: Mapping[str, bool]) -> float | None:
            return 100 * sum(found[e.key] for e in chosen) / len(chosen) if chosen else None

        base = accuracy(federation.base_test, right)
        novel = accuracy(federation.novel_test, right_novel)
        return [Accuracy(accuracy(client.test, right), base, novel) for client in clients]

    def accuracy_on(self, adapter: Adapter, examples: Sequence[Example]) -> float:
        """Percent of examples of base classes, at least one, that are right among base names."""
        right = self._right(adapter.eval(), self.federation.base, unique(examples))
        return 100 * sum(right.values()) / len(right)

    @torch.inference_mode()
    def _right(
        self, adapter: Adapter, labels: Sequence[int], examples: Sequence[Example]
    ) -> dict[str, bool]:
        """Whether each example's own class is chosen among `labels`, by key."""
        if not examples:
            return {}
        texts = adapter.encode_text(self.backbone, self._texts(adapter, tuple(labels)))
        start = adapter.first_block(self.backbone, "image")
        self.images.keep(examples, start)
        right = {}
        for first in range(0, len(examples), BATCH):
            chosen = examples[first : first + BATCH]
            images = adapter.encode_image(self.backbone, self.images.load(chosen, start))
            scores = adapter.logits(images, texts, self.logit_scale)
            for example, row in zip(chosen, scores.argmax(dim=1).tolist(), strict=True):
                right[example.key] = labels[row] == example.label
        return right

    def _texts(self, adapter: Adapter, labels: tuple[int, ...]) -> ClassTexts:
        """Class names with the frozen blocks' activations: the same for every client."""
        start = adapter.first_block(self.backbone, "text") if self.images.cache else 0
        if (labels, start) not in self._frozen:
            texts = class_texts(self.backbone, self.federation.names(labels), self.template)
            self._frozen[labels, start] = with_activations(self.backbone, texts, start)
        return self._frozen[labels, start]


def unique(examples: Iterable[Example]) -> list[Example]:
    """Each example once, in order of first appearance."""
    return list({example.key: example for example in examples}.values())
