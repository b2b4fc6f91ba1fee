"""Whether an answer counts: "unknown", and sets of classes that hold the right one.

What `pfedmma_deploy.calibration` fitted is applied here, one image at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.calibration import ACCEPT, Calibration, known_scores, require_share
from pfedmma_deploy.data.class_names import class_key
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.runtime.bundle import Bundle
from pfedmma_deploy.runtime.text_tower import TextTower, checked_classes

Features = NDArray[np.float32]
Numbers = NDArray[np.float64]
UNKNOWN = "unknown"
"""The answer where none of the classes is believed."""


@dataclass(frozen=True, slots=True)
class Terms:
    """On which terms answers count; made by `checked_terms`."""

    accept: float | None = None
    """Share of a client's own images that must not become unknown, above 0 and at most 1, where
    nothing becomes unknown. None is 0.95 for the bundle's own class names where the client is
    calibrated, and 1 otherwise."""
    coverage: float | None = None
    """How often `Verdict.likely` must hold the right class, above 0 and below 1; None for no
    sets."""
    negatives: tuple[str, ...] = ()
    """Names that compete with the classes: where one of them is likelier than all, the image is
    unknown."""


USUAL = Terms()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be thought of an answer."""

    known: float | None = None
    """Score of the image: the higher, the more it is like what the client holds. None where the
    client is not calibrated."""
    threshold: float | None = None
    """Below it an image is unknown; None where none is drawn."""
    negative: str | None = None
    """The negative name that is likelier than all classes."""
    likely: tuple[str, ...] | None = None
    """Classes, best first, that hold the right one as often as was asked; None if it was not."""

    @property
    def is_unknown(self) -> bool:
        """Whether the image shows none of the classes, as far as the client can tell."""
        is_strange = self.threshold is not None and (self.known or 0.0) < self.threshold
        return is_strange or self.negative is not None


PLAIN = Verdict()


def checked_terms(
    accept: float | None, coverage: float | None, negatives: Sequence[str] | None
) -> Terms:
    """`Terms` in range. Raises `UsageError`."""
    if accept is not None:
        require_share("accept", accept, 1.0)
    if coverage is not None:
        require_share("coverage", coverage, float(np.nextafter(1, 0)))
    return Terms(accept, coverage, () if negatives is None else checked_classes(negatives))


class Certainty:
    """Judges the answers of a bundle's clients; safe to share between threads."""

    def __init__(self, bundle: Bundle, texts: TextTower) -> None:
        self._bundle, self._texts = bundle, texts

    @cached_property
    def _general(self) -> Features:
        return self._bundle.general_embeds()

    @cached_property
    def _means(self) -> Features:
        return self._bundle.mean_embeds()

    def require(self, index: int, classes: tuple[str, ...], terms: Terms) -> None:
        """Raises `UsageError` where these terms cannot be kept for a client and class names."""
        manifest = self._bundle.manifest
        for name in terms.negatives:
            if class_key(name) in map(class_key, classes):
                raise UsageError(
                    f"{name!r} is a class that is asked for and a negative name: leave it out of "
                    "one of the two."
                )
        asked = terms.coverage is not None or terms.accept not in {None, 1}
        if asked and manifest.clients[index].calibration is None:
            raise UsageError(
                f"Client {manifest.clients[index].id!r} of {self._bundle.path} is not calibrated, "
                "so nothing is known of its certainty: personalize it with validation images and "
                "export again, or leave out --accept and --coverage."
            )
        if terms.coverage is not None and classes != manifest.class_names:
            raise UsageError(
                "Sets of classes are fitted for the bundle's own class names: leave out --coverage "
                "or --classes."
            )

    def temperature(self, index: int) -> float:
        """What a client's class scores are divided by."""
        calibration = self._calibration(index)
        return 1.0 if calibration is None else calibration.temperature

    def judge(
        self,
        view: tuple[int, float],
        image: Features,
        logits: Numbers,
        probabilities: Numbers,
        classes: tuple[str, ...],
        terms: Terms,
    ) -> Verdict:
        """The verdict on one answer.

        Args:
            view: the client's index and strength.
            image: its feature [D].
            logits: [C], the logit scale times the cosines with the classes.
            probabilities: [C], by the client's temperature.
            classes: names of the C classes.
            terms: that `require` has let pass.
        """
        index, strength = view
        negative = None
        if terms.negatives:
            rivals = self._texts.encoded(index, terms.negatives, strength) @ image
            if self._bundle.manifest.logit_scale * float(rivals.max()) > logits.max():
                negative = terms.negatives[int(rivals.argmax())]
        calibration = self._calibration(index)
        if calibration is None:
            return Verdict(negative=negative)
        own_names = classes == self._bundle.manifest.class_names
        accept = terms.accept or (ACCEPT if own_names else 1.0)
        likely = None
        if terms.coverage is not None:
            least = calibration.least_probability(terms.coverage)
            order = np.argsort(-probabilities, kind="stable")
            # The best class is always in: an empty set would tell nobody anything.
            chosen = [order[0], *(i for i in order[1:] if probabilities[i] >= least)]
            likely = tuple(classes[i] for i in chosen)
        known = self._known(index, image, logits, classes)
        return Verdict(known, calibration.threshold(accept), negative, likely)

    def _calibration(self, index: int) -> Calibration | None:
        return self._bundle.manifest.clients[index].calibration

    def _known(
        self, index: int, image: Features, logits: Numbers, classes: tuple[str, ...]
    ) -> float:
        """The image's score of being known to a client."""
        manifest = self._bundle.manifest
        factor = manifest.logit_scale
        general = factor * (self._general @ image).astype(np.float64)
        if classes != manifest.class_names:
            # A typed class does not compete with itself.
            keys = set(map(class_key, classes))
            others = [class_key(word) not in keys for word in manifest.general_words]
            general = general[others]
        closeness = np.array([self._means[index] @ image], np.float64)
        return float(known_scores(logits[None], general[None], closeness, factor)[0])
