"""A model's calibration, fitted on images that its client holds; no test image is looked at.

The mean image is that of the training images. Temperature, threshold and sets come from validation
images, which the model was not trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch

from pfedmma_deploy.adapters.base import Adapter, Frozen
from pfedmma_deploy.backbone.clip import class_texts
from pfedmma_deploy.calibration import (
    Array,
    ClientCalibration,
    fit_calibration,
    general_words,
    known_scores,
)
from pfedmma_deploy.data.class_names import class_key
from pfedmma_deploy.evaluation.accuracy import Scorer
from pfedmma_deploy.types import Example


def competing_words(class_names: Sequence[str]) -> tuple[str, ...]:
    """The general words without those that are class names: a class does not compete with itself.

    Synonyms stay ("car" beside "automobile"): the threshold is fitted with them in place.
    """
    taken = {class_key(name) for name in class_names}
    return tuple(word for word in general_words() if class_key(word) not in taken)


class Calibrator:
    """Fits the calibrations of models that answer among the same class names.

    Args:
        scorer: of the federation whose images they are fitted on.
        labels: the C classes that are offered; None takes all that the data set has.
    """

    def __init__(self, scorer: Scorer, labels: Sequence[int] | None = None) -> None:
        self.scorer = scorer
        names = scorer.federation.dataset.class_names
        self.labels = tuple(range(len(names)) if labels is None else labels)
        self.words = competing_words([names[label] for label in self.labels])

    @cached_property
    def general(self) -> Array:
        """Features [W, D] of `words` by the frozen backbone: the same for every client."""
        texts = class_texts(self.scorer.backbone, self.words, self.scorer.template)
        with torch.inference_mode():
            return Frozen().encode_text(self.scorer.backbone, texts).double().cpu().numpy()

    @torch.inference_mode()
    def fit(
        self, adapter: Adapter, train: Sequence[Example], val: Sequence[Example], strength: float
    ) -> ClientCalibration | None:
        """The calibration of one model; None without a training or without a validation image.

        Args:
            adapter: the model, at the strength that it shall answer with.
            train: images that it was trained on.
            val: images that it was not trained on, of classes among `labels`.
            strength: the adapter's, to be noted.
        """
        if not train or not val:
            return None
        features = self.features(adapter, [*train, *val])
        mean = features[: len(train)].mean(axis=0)
        mean /= np.linalg.norm(mean)
        scores, known = self.scores(adapter, features[len(train) :], mean)
        rows = np.array([self.labels.index(example.label) for example in val])
        return ClientCalibration(fit_calibration(scores, rows, known, strength), mean)

    def features(self, adapter: Adapter, examples: Sequence[Example]) -> Array:
        """Features [N, D] of images, L2-normalised."""
        found = [batch.double().cpu() for batch in self.scorer.encode_images(adapter, examples)]
        features: Array = torch.cat(found).numpy()
        return features

    def scores(self, adapter: Adapter, images: Array, mean: Array) -> tuple[Array, Array]:
        """Class scores [N, C] of image features [N, D], and their scores [N] of being known.

        `mean` [D] is the direction of the client's mean image.
        """
        factor = self.scorer.logit_scale
        texts = self.scorer.encode_texts(adapter, self.labels).double().cpu().numpy()
        scores = factor * images @ texts.T
        known = known_scores(scores, factor * images @ self.general.T, images @ mean, factor)
        return scores, known
