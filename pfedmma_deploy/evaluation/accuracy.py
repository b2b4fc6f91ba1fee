"""Local, base and novel accuracy of zero-shot CLIP and of every client's own model.

The metrics of the field (pFedMMA, arXiv 2507.05394, section 5): *local* is accuracy on test images
of the client's own classes, *base* on all base test images, both scored against all base names;
*novel* on all novel test images, scored among the novel names. *All* is what a deployed model is
asked: every base and novel test image, scored among base and novel names together. Text features
are rebuilt with each client's adapter, at every evaluation. Means over clients are unweighted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pfedmma_deploy.adapters.base import Adapter, Frozen
from pfedmma_deploy.backbone.activation_cache import ImageInputs
from pfedmma_deploy.backbone.clip import Backbone, ClassTexts, class_texts, with_activations
from pfedmma_deploy.types import MOST_LOST, ClientData, Example, Federation

BATCH = 64
"""Larger ones are slower on a CPU: their activations are given back to the system every time."""


@dataclass(frozen=True)
class Accuracy:
    """Percent; None where there is nothing to measure it on."""

    local: float | None
    base: float | None
    novel: float | None
    all: float | None = None
    """Base and novel test images, among base and novel names together."""

    @property
    def hm2(self) -> float | None:
        """Harmonic mean of base and novel."""
        return harmonic_mean((self.base, self.novel))

    @property
    def hm3(self) -> float | None:
        """Harmonic mean of local, base and novel."""
        return harmonic_mean((self.local, self.base, self.novel))

    def to_dict(self) -> dict[str, float | None]:
        """The six figures by name."""
        return {
            "local": self.local,
            "base": self.base,
            "novel": self.novel,
            "hm2": self.hm2,
            "hm3": self.hm3,
            "all": self.all,
        }

    def loses(self, zero_shot: Accuracy) -> bool:
        """Whether base or novel lies more than `MOST_LOST` points below zero-shot's."""
        for own, before in ((self.base, zero_shot.base), (self.novel, zero_shot.novel)):
            if own is not None and before is not None and before - own > MOST_LOST:
                return True
        return False


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
        all=mean(row.all for row in rows),
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
        self._frozen: dict[tuple[tuple[str, ...], int], ClassTexts] = {}

    def score(self, adapter: Adapter | None, clients: Sequence[ClientData]) -> list[Accuracy]:
        """Accuracy of one model for each of the clients: all but local are the same for all.

        `adapter` None is zero-shot CLIP.
        """
        adapter = Frozen() if adapter is None else adapter
        tests = self.tests(clients)
        return self.accuracies(clients, tests, self.scores(adapter, tests, *self.sets))

    def tests(self, clients: Sequence[ClientData]) -> list[Example]:
        """The federation's test images and those of the clients, each once."""
        own = [example for client in clients for example in client.test]
        return unique([*self.federation.base_test, *own, *self.federation.novel_test])

    def accuracies(
        self, clients: Sequence[ClientData], tests: Sequence[Example], scores: Sequence[Tensor]
    ) -> list[Accuracy]:
        """Accuracy for each of the clients, from the scores of all `tests` among `sets`."""
        federation = self.federation
        right: list[dict[str, bool]] = []
        for labels, found in zip(self.sets, scores, strict=True):
            right.append(are_right(tests, labels, found))
        of_base, of_novel, of_all = right

        def accuracy(chosen: Sequence[Example], found: Mapping[str, bool]) -> float | None:
            return 100 * sum(found[e.key] for e in chosen) / len(chosen) if chosen else None

        base = accuracy(federation.base_test, of_base)
        novel = accuracy(federation.novel_test, of_novel)
        every = accuracy([*federation.base_test, *federation.novel_test], of_all)
        return [Accuracy(accuracy(c.test, of_base), base, novel, every) for c in clients]

    def accuracy_on(self, adapter: Adapter, examples: Sequence[Example]) -> float:
        """Percent of examples of base classes, at least one, that are right among base names."""
        base, chosen = self.federation.base, unique(examples)
        right = are_right(chosen, base, self.scores(adapter, chosen, base)[0])
        return 100 * sum(right.values()) / len(right)

    @property
    def sets(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Labels that a test image is asked among: base, novel, and every."""
        return self.federation.base, self.federation.novel, self.every_label

    @property
    def every_label(self) -> tuple[int, ...]:
        """Labels of the base classes, then those of the novel ones that are not among them."""
        return tuple(dict.fromkeys((*self.federation.base, *self.federation.novel)))

    def scores(
        self, adapter: Adapter, examples: Sequence[Example], *sets: Sequence[int]
    ) -> list[Tensor]:
        """Class scores of examples among several sets of labels; images are encoded once.

        Args:
            adapter: the model.
            examples: N of them.
            sets: C labels each; empty sets are allowed.

        Returns:
            One fp32 tensor [N, C] per set, on the CPU.
        """
        names = [self.federation.names(labels) for labels in sets]
        return self.scores_among(adapter, examples, *names)

    @torch.inference_mode()
    def scores_among(
        self, adapter: Adapter, examples: Sequence[Example], *sets: Sequence[str]
    ) -> list[Tensor]:
        """The same among sets of different names, whether they are the data set's or not."""
        # Names that are read one by one are encoded once, and a set is some of their columns.
        together = tuple(dict.fromkeys(name for names in sets for name in names))
        asked = [tuple(names) for names in sets] if adapter.reads_names_together else [together]
        texts = [self.encode_names(adapter, names) if names else None for names in asked]
        found: list[list[Tensor]] = [[torch.empty(0, len(names))] for names in asked]
        for images in self.encode_images(adapter, examples):
            for rows, features in zip(found, texts, strict=True):
                if features is None:
                    rows.append(torch.empty(len(images), 0))
                else:
                    rows.append(adapter.logits(images, features, self.logit_scale).float().cpu())
        scores = [torch.cat(rows) for rows in found]
        if not adapter.reads_names_together:
            column = {name: place for place, name in enumerate(together)}
            scores = [scores[0][:, [column[name] for name in names]] for names in sets]
        if adapter.interpolation != "scores" or adapter.strength == 1:
            return scores
        plain = self.scores_among(Frozen(), examples, *sets)
        return [torch.lerp(a, b, adapter.strength) for a, b in zip(plain, scores, strict=True)]

    @torch.inference_mode()
    def encode_images(self, adapter: Adapter, examples: Sequence[Example]) -> Iterator[Tensor]:
        """What `adapter` makes of the images, up to `BATCH` of them at a time: [B, D] for most."""
        adapter.eval()
        start = adapter.first_block(self.backbone, "image")
        self.images.keep(examples, start)
        for first in range(0, len(examples), BATCH):
            chosen = examples[first : first + BATCH]
            yield adapter.encode_image(self.backbone, self.images.load(chosen, start))

    def encode_texts(self, adapter: Adapter, labels: Sequence[int]) -> Tensor:
        """What `adapter` makes of the names of at least one class: [C, D] for most."""
        return self.encode_names(adapter, self.federation.names(labels))

    @torch.inference_mode()
    def encode_names(self, adapter: Adapter, names: Sequence[str]) -> Tensor:
        """What `adapter` makes of at least one name in the prompt: [C, D] for most."""
        return adapter.eval().encode_text(self.backbone, self._texts(adapter, tuple(names)))

    def _texts(self, adapter: Adapter, names: tuple[str, ...]) -> ClassTexts:
        """Names with the frozen blocks' activations: the same for every client."""
        start = adapter.first_block(self.backbone, "text") if self.images.cache else 0
        if (names, start) not in self._frozen:
            texts = class_texts(self.backbone, names, self.template)
            self._frozen[names, start] = with_activations(self.backbone, texts, start)
        return self._frozen[names, start]


def are_right(
    examples: Sequence[Example], labels: Sequence[int], scores: Tensor
) -> dict[str, bool]:
    """Whether each example's own class has the highest of its scores [N, C], by key."""
    if not labels:
        return {}
    answers = scores.argmax(dim=1).tolist()
    return {e.key: labels[a] == e.label for e, a in zip(examples, answers, strict=True)}


def unique(examples: Iterable[Example]) -> list[Example]:
    """Each example once, in order of first appearance."""
    return list({example.key: example for example in examples}.values())
