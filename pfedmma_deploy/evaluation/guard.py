"""The guard: how strongly a client's own model may count without moving what zero-shot CLIP knew.

A client learns from images of few classes, and loses some of what CLIP knew of all the others. It
cannot see that: it has no image of them. What it can see is how far CLIP's beliefs move about names
that it never trained on, on both sides:

- images: the softmax of its own images' scores among general words;
- names: the softmax of those words, as texts, among the names of the classes trained on.

Each movement is the total variation between zero-shot CLIP and the client's model, mean over images
or words, in percent: 0 where nothing moved, 100 where all belief went elsewhere. The guard takes
the largest strength (`Adapter.at`) at which neither is above a bound. That a fine-tuned model is
best somewhere between is WiSE-FT's finding (Wortsman et al., arXiv 2109.01903), that beliefs about
other names are what to hold on to is that of ZSCL (Zheng et al., arXiv 2303.06628).
`benchmarks/guard.md` compares it with other ways.

No test image and no name of a novel class is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from torch import Tensor

from pfedmma_deploy.adapters.base import Adapter, Frozen
from pfedmma_deploy.evaluation.accuracy import Scorer
from pfedmma_deploy.evaluation.calibrate import competing_words
from pfedmma_deploy.types import ClientData, Example

Beliefs = tuple[Tensor, Tensor | None]
"""What `Guardian._beliefs` gives."""
MOST_WORDS = 128
"""General words, evenly spaced among all: each is a text to encode."""
MOST_IMAGES = 256
"""Of a client, evenly spaced, on which movements are measured."""
STEPS = 16
"""Strengths are multiples of 1 / 16."""


@dataclass(frozen=True)
class Guard:
    """What was chosen for a client, and on what grounds; percent."""

    strength: float
    bound: float
    images: int
    """The client's images that were looked at."""
    moved_images: float
    """How far beliefs about them move, at `strength`."""
    moved_names: float | None
    """How far beliefs about names move; None where the method compares no text with a text."""
    moved_images_as_trained: float
    """The same at strength 1."""
    moved_names_as_trained: float | None
    validation: float | None
    """Accuracy on the client's validation images among the base names; None without any."""
    validation_zero_shot: float | None


class Guardian:
    """Chooses strengths for the models of a federation's clients.

    Args:
        scorer: of the federation.
        bound: percent that beliefs may move.
    """

    def __init__(self, scorer: Scorer, bound: float) -> None:
        self.scorer = scorer
        self.bound = bound
        words = competing_words(scorer.federation.dataset.class_names)
        self.words = words[:: -(-len(words) // MOST_WORDS)]

    def choose(self, adapter: Adapter, client: ClientData) -> Guard:
        """The largest strength within the bound at which the client itself loses nothing.

        Its accuracy on its own validation images is at least zero-shot's there. Without validation
        images its training images tell how far beliefs move.

        Args:
            adapter: the client's model, as trained.
            client: with at least one image.
        """
        chosen = _spread(client.val or client.train)
        before = self._beliefs(Frozen(), chosen)

        @cache
        def moved(step: int) -> tuple[float, float | None]:
            return _movements(self._beliefs(adapter.at(step / STEPS), chosen), before)

        def is_within(step: int) -> bool:
            images, names = moved(step)
            return max(images, names or 0.0) <= self.bound

        def accuracy(step: int) -> float | None:
            if not client.val:
                return None
            return self.scorer.accuracy_on(adapter.at(step / STEPS), client.val)

        step, zero_shot = largest_step(is_within), accuracy(0)
        own = zero_shot if step == 0 else accuracy(step)
        while step > 0 and own is not None and zero_shot is not None and own < zero_shot:
            step //= 2
            own = zero_shot if step == 0 else accuracy(step)
        return Guard(
            step / STEPS, self.bound, len(chosen), *moved(step), *moved(STEPS), own, zero_shot
        )

    def movement(self, adapter: Adapter, client: ClientData) -> float:
        """How far a model moves beliefs, the larger of both: what `choose` bounds; percent."""
        chosen = _spread(client.val or client.train)
        before = self._beliefs(Frozen(), chosen)
        images, names = _movements(self._beliefs(adapter, chosen), before)
        return max(images, names or 0.0)

    @cached_property
    def _word_features(self) -> Tensor:
        """[W, D] by the frozen backbone."""
        return self.scorer.encode_names(Frozen(), self.words).float().cpu()

    def _beliefs(self, adapter: Adapter, examples: Sequence[Example]) -> Beliefs:
        """Softmax of images among words [N, W], and of words among base names [W, C]."""
        (among_words,) = self.scorer.scores_among(adapter, examples, self.words)
        images = among_words.double().softmax(dim=1)
        if adapter.interpolation == "scores":
            return images, None
        names = self.scorer.encode_texts(adapter, self.scorer.federation.base).float().cpu()
        scores = self.scorer.logit_scale * self._word_features @ names.T
        return images, scores.double().softmax(dim=1)


def _spread(examples: Sequence[Example]) -> Sequence[Example]:
    return examples[:: -(-len(examples) // MOST_IMAGES)]


def _movements(found: Beliefs, before: Beliefs) -> tuple[float, float | None]:
    names = None
    if found[1] is not None and before[1] is not None:
        names = variation(found[1], before[1])
    return variation(found[0], before[0]), names


def largest_step(is_within: Callable[[int], bool]) -> int:
    """The largest of 0 to `STEPS` at which it holds, which it does at 0; by bisection.

    Movements grow with the strength, so that it holds up to there and nowhere beyond.
    """
    if is_within(STEPS):
        return STEPS
    low, high = 0, STEPS
    while high - low > 1:
        middle = (low + high) // 2
        if is_within(middle):
            low = middle
        else:
            high = middle
    return low


def variation(found: Tensor, before: Tensor) -> float:
    """Total variation of the rows of two tables of probabilities [N, C], mean, in percent."""
    return float(50 * (found - before).abs().sum(dim=1).mean())
