"""Whether a model's probabilities can be trusted, and whether it notices what it never learned.

Probabilities are the softmax of class scores. A client's temperature is fitted on its own
validation images, among base names; test images only measure what it brings. "None of these" is
judged by the largest probability among base names (Hendrycks and Gimpel, arXiv 1610.02136): test
images of base classes should have a larger one than those of novel classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pfedmma_deploy.calibration import (
    BINS,
    TEMPERATURES,
    Array,
    auroc,
    fit_temperature,
    probabilities,
    reliability,
)
from pfedmma_deploy.evaluation.accuracy import Scorer
from pfedmma_deploy.report.measures import mean_of
from pfedmma_deploy.types import ClientData, Example

KEYS = ("ece_all", "ece_local", "auroc_novel")


@dataclass(frozen=True)
class Judged:
    """A model's answers on some images."""

    confidence: Array
    """[N], probability of the answer."""
    is_right: NDArray[np.bool_]
    """[N]"""


class Calibration:
    """Collects one client after the other; `to_dict` says what was found."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self._clients: dict[str, dict[str, Any]] = {}
        self._pooled: dict[str, list[Judged]] = {"zero_shot": [], "personalized": [], "scaled": []}

    def add(
        self,
        client: ClientData,
        tests: Sequence[Example],
        zero_shot: Sequence[Tensor],
        personalized: Sequence[Tensor],
        validation: Tensor | None,
    ) -> None:
        """Judge one client beside zero-shot.

        Args:
            client: the client.
            tests: N test images, those of the federation and the client's own among them.
            zero_shot: the frozen backbone's scores of `tests` among each of `Scorer.sets`.
            personalized: the same of the client's own model.
            validation: its scores [V, base names] of the client's validation images; None without.
        """
        entry: dict[str, Any] = {"validation_images": len(client.val), "temperature": None}
        entry["zero_shot"] = self._judge("zero_shot", client, tests, zero_shot, 1.0)
        entry["personalized"] = self._judge("personalized", client, tests, personalized, 1.0)
        entry["scaled"] = None
        if validation is not None:
            labels = self.scorer.federation.base
            rows = np.array([labels.index(example.label) for example in client.val])
            found = fit_temperature(_array(validation), rows)
            entry["temperature"] = found
            entry["scaled"] = self._judge("scaled", client, tests, personalized, found)
        self._clients[client.id] = entry

    def _judge(
        self,
        model: str,
        client: ClientData,
        tests: Sequence[Example],
        scores: Sequence[Tensor],
        temperature: float,
    ) -> dict[str, float | None]:
        """`KEYS` of one model, and its answers on all test images for the diagram."""
        federation, place = self.scorer.federation, {e.key: i for i, e in enumerate(tests)}
        of_base, _, of_all = (_array(found) / temperature for found in scores)
        every = [*federation.base_test, *federation.novel_test]

        def judge(chosen: Sequence[Example], labels: Sequence[int], found: Array) -> Judged:
            shares = probabilities(found[[place[e.key] for e in chosen]])
            own = np.array([e.label for e in chosen])
            # An empty selection has no column to choose from.
            answers = np.array(labels)[shares.argmax(axis=1)] if len(chosen) else own
            return Judged(shares.max(axis=1, initial=0.0), answers == own)

        whole = judge(every, self.scorer.every_label, of_all)
        local = judge(client.test, federation.base, of_base)
        self._pooled[model].append(whole)
        known = judge(federation.base_test, federation.base, of_base).confidence
        # Where novel images are of base classes in another domain, they are not unknown.
        is_unknown = not set(federation.novel) <= set(federation.base)
        unknown = federation.novel_test if is_unknown else ()
        return {
            "ece_all": reliability(whole.confidence, whole.is_right)[1],
            "ece_local": reliability(local.confidence, local.is_right)[1],
            "auroc_novel": auroc(known, judge(unknown, federation.base, of_base).confidence),
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: means over clients, every client, the bins of the diagram."""
        means: dict[str, dict[str, float | None] | None] = {}
        bins = {}
        for model, judged in self._pooled.items():
            rows = [entry[model] for entry in self._clients.values() if entry[model] is not None]
            means[model] = {key: mean_of([row[key] for row in rows]) for key in KEYS}
            confidence = np.concatenate([one.confidence for one in judged] or [np.empty(0)])
            is_right = np.concatenate([one.is_right for one in judged] or [np.empty(0, bool)])
            bins[model] = reliability(confidence, is_right)[0]
        return {
            **means,
            "clients": self._clients,
            "reliability": bins,
            "bins": BINS,
            "temperature_range": list(TEMPERATURES),
        }


def _array(scores: Tensor) -> Array:
    return scores.double().numpy()
