"""When an answer can be believed: a temperature, a score for "none of these", sets of classes.

Fitted on a client's own validation images (`evaluation.calibrate`), applied where models answer
(`runtime`), judged in reports. Needs numpy alone.

An image is *known* to a client where it looks like what the client holds. Its score is

    logsumexp_c s cos(x, t_c) - logsumexp_w s cos(x, g_w) + 0.25 s cos(x, m)

with the image's feature x, text features t_c of the class names that are offered, g_w of general
words that compete with them (NegLabel, Jiang et al., arXiv 2403.20078), m the direction of the
client's mean training image, and the logit scale s. `benchmarks/answers.md` compares it with
others.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.errors import StoreError, UsageError

Array = NDArray[np.float64]
Rows = NDArray[np.int64]
Bin = dict[str, float]

BINS = 15
"""Of a reliability diagram (Guo et al., arXiv 1706.04599)."""
TEMPERATURES = (0.05, 20.0)
"""A temperature is looked for between these."""
PRIOR_IMAGES = 16
"""A fitted temperature is drawn towards 1 as by so many more images: few images must not move it
far."""
MEAN_WEIGHT = 0.25
"""Of the client's mean image in the score of known images."""
ACCEPT = 0.95
"""Share of a client's own images that are kept where nobody says otherwise."""
FEWEST = 5
"""Validation images from which a threshold is drawn: two or three may be alike by chance."""
MOST_STORED = 101
"""Probabilities that are stored of a client's validation images."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a client's validation images say of its answers; no image can be made from it."""

    images: int
    """Validation images that it was fitted on, at least 1."""
    temperature: float
    """Class scores are divided by it before softmax."""
    strength: float
    """That the client's model had."""
    known_mean: float
    """Of the images' scores (see above)."""
    known_deviation: float
    """Their standard deviation; 0 of a single image."""
    confidence_mean: float
    """Of the probabilities of the answers."""
    confidence_deviation: float
    own_class: tuple[float, ...]
    """Probabilities that the images' own classes got, ascending: all, or `MOST_STORED` of them at
    evenly spaced ranks, the first and the last among them."""

    def problem(self) -> str | None:
        """What cannot be so, as a clause; None where all is well."""
        own = self.own_class
        numbers = [getattr(self, name) for name in _NUMBERS]
        if not all(map(math.isfinite, (*numbers, *own))):
            return "it has a number that is not finite"
        if self.images < 1 or not 1 <= len(own) <= min(self.images, MOST_STORED):
            return f"it has {len(own)} probabilities of {self.images} images"
        if not TEMPERATURES[0] <= self.temperature <= TEMPERATURES[1]:
            return f"its temperature is {self.temperature:g}"
        deviations = self.known_deviation, self.confidence_deviation
        if min(deviations) < 0 or list(own) != sorted(own) or own[0] < 0 or own[-1] > 1:
            return "a deviation is negative, or its probabilities are no ascending ones"
        return None

    def threshold(self, accept: float = ACCEPT) -> float | None:
        """The score below which an image counts as unknown, so that `accept` of known ones stay.

        The lower end of Student's prediction interval for one more score: mean - t s sqrt(1 + 1/n).
        None, which means that nothing is rejected, at accept 1 and where there are fewer than
        `FEWEST` images.

        Raises:
            UsageError: `accept` is not above 0 and at most 1.
        """
        require_share("accept", accept, 1.0)
        if accept == 1 or self.images < FEWEST:
            return None
        spread = self.known_deviation * math.sqrt(1 + 1 / self.images)
        return self.known_mean - student_quantile(accept, self.images - 1) * spread

    def least_probability(self, coverage: float) -> float:
        """Classes of at least this probability hold the right one for `coverage` of the images.

        Split conformal prediction with 1 - probability as the score (Sadinle et al., arXiv
        1609.00451): on exchangeable images the promise holds on average, whatever the model. 0,
        which lets every class in, where there are too few images to promise anything less.

        Raises:
            UsageError: `coverage` is not above 0 and below 1.
        """
        require_share("coverage", coverage, math.nextafter(1, 0))
        # A new image has a lower probability than the k-th lowest of n with chance k / (n + 1).
        # What rounding leaves of a whole number counts as it.
        rank = math.floor((self.images + 1) * (1 - coverage) + 1e-9)
        stored = np.linspace(1, self.images, len(self.own_class)).round()
        fitting = np.flatnonzero(stored <= rank)
        return self.own_class[fitting[-1]] if len(fitting) else 0.0


@dataclass(frozen=True)
class ClientCalibration:
    """A calibration with the direction of the client's mean image."""

    calibration: Calibration
    mean: Array
    """[D], of length 1."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, the mean to six digits."""
        return {**asdict(self.calibration), "mean": [round(x, 6) for x in self.mean.tolist()]}

    @classmethod
    def from_dict(cls, raw: Any, owner: str) -> ClientCalibration:
        """The inverse of `to_dict`. Raises `StoreError`, which names the owner."""
        try:
            numbers = {name: float(raw[name]) for name in _NUMBERS}
            own = tuple(map(float, raw["own_class"]))
            found = Calibration(images=int(raw["images"]), own_class=own, **numbers)
            mean = np.array(raw["mean"], np.float64).reshape(-1)
            length = float(np.linalg.norm(mean))
            wrong = found.problem()
        except (KeyError, TypeError, ValueError) as error:
            wrong, length = f"{type(error).__name__}: {error}", 1.0
        if wrong is None and not 0.99 < length < 1.01:
            wrong = f"its mean has length {length:g}, expected 1"
        if wrong is not None:
            raise StoreError(
                f"The calibration of {owner} cannot be used, since {wrong}: personalize the "
                "client again, which fits it anew."
            )
        return cls(found, mean)


_NUMBERS = (
    *("temperature", "strength", "known_mean", "known_deviation"),
    *("confidence_mean", "confidence_deviation"),
)


def fit_calibration(scores: Array, rows: Rows, known: Array, strength: float) -> Calibration:
    """The calibration of a model.

    Args:
        scores: class scores [N, C] of at least one validation image.
        rows: [N], the column of each image's own class.
        known: [N], the images' scores of being known.
        strength: that the model had.
    """
    temperature = fit_temperature(scores, rows)
    shares = probabilities(scores / temperature)
    best = shares.max(axis=1)
    own = np.sort(shares[np.arange(len(rows)), rows])
    ranks = np.linspace(1, len(own), min(len(own), MOST_STORED)).round().astype(int)
    return Calibration(
        images=len(rows),
        temperature=temperature,
        strength=strength,
        known_mean=float(known.mean()),
        known_deviation=float(known.std(ddof=1)) if len(known) > 1 else 0.0,
        confidence_mean=float(best.mean()),
        confidence_deviation=float(best.std(ddof=1)) if len(best) > 1 else 0.0,
        own_class=tuple(own[ranks - 1].tolist()),
    )


def known_scores(logits: Array, general: Array, closeness: Array, logit_scale: float) -> Array:
    """Scores [N] of being known: see the head of this module.

    Args:
        logits: [N, C], the logit scale times the cosines with the class names that are offered.
        general: [N, W], the same with the general words.
        closeness: [N], cosines with the client's mean image.
        logit_scale: the factor.
    """
    own: Array = _log_sum(logits) - _log_sum(general) + MEAN_WEIGHT * logit_scale * closeness
    return own


def _log_sum(scores: Array) -> Array:
    largest = scores.max(axis=1, keepdims=True)
    found: Array = (largest + np.log(np.exp(scores - largest).sum(axis=1, keepdims=True)))[:, 0]
    return found


@cache
def general_words() -> tuple[str, ...]:
    """Everyday words that compete with the classes (`assets/general-words/README.md`)."""
    text = files("pfedmma_deploy").joinpath("assets/general-words/words.txt").read_text("utf-8")
    return tuple(word.strip() for line in text.splitlines() for word in line.split(","))


def student_quantile(share: float, freedom: int) -> float:
    """Student's t with `freedom` >= 1 degrees: below it lies `share`, above 0 and below 1.

    Exact for one and two degrees, else Cornish and Fisher's expansion (Abramowitz and Stegun,
    26.7.5): within 1.5 % for shares from 0.5 to 0.99.
    """
    if freedom == 1:
        return math.tan(math.pi * (share - 0.5))
    if freedom == 2:
        return (2 * share - 1) / math.sqrt(2 * share * (1 - share))
    z: float = NormalDist().inv_cdf(share)
    terms: tuple[float, ...] = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / float(freedom**power) for power, term in enumerate(terms, start=1))


def require_share(name: str, value: float, most: float) -> None:
    """Raises `UsageError` where `value` is not a share above 0 and up to `most`."""
    # Written so that NaN does not pass.
    if not 0 < value <= most:
        end = "at most 1" if most == 1 else "below 1"
        raise UsageError(f"{name} should be above 0 and {end}, found {value:g}: 0.95 is usual.")


def probabilities(scores: Array) -> Array:
    """Softmax of class scores [N, C] over the classes."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: Array = powers / powers.sum(axis=1, keepdims=True)
    return shares


def reliability(confidence: Array, is_right: NDArray[np.bool_]) -> tuple[list[Bin], float | None]:
    """Bins of a reliability diagram, and the expected calibration error in percent.

    ECE = sum over bins of n_b / n * |accuracy_b - confidence_b| (Guo et al., arXiv 1706.04599,
    equation 3), with bins of equal width.

    Args:
        confidence: [N], probability of each answer.
        is_right: [N], whether it was right.

    Returns:
        `count`, and `confidence` and `accuracy` in percent, of every bin that holds an answer; the
        error is None where there is no answer.
    """
    places = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    bins: list[Bin] = []
    error = 0.0
    for place in np.unique(places):
        inside = places == place
        known, right = float(confidence[inside].mean()), float(is_right[inside].mean())
        count = int(inside.sum())
        bins.append({"count": count, "confidence": 100 * known, "accuracy": 100 * right})
        error += count * abs(right - known)
    return bins, 100 * error / len(confidence) if len(confidence) else None


def fit_temperature(scores: Array, rows: Rows) -> float:
    """The T that makes softmax(scores / T) most likely (Guo et al., arXiv 1706.04599, section 4).

    With a prior that has the weight of `PRIOR_IMAGES` images and its peak at 1: a Gamma
    distribution of 1 / T. The likelihood is concave in 1 / T, so its slope is bisected: exact to
    four digits.

    Args:
        scores: [N, C]; without an image T is 1.
        rows: [N], the column of each image's own class.

    Returns:
        T within `TEMPERATURES`.
    """
    own = scores[np.arange(len(rows)), rows]

    def slope(inverse: float) -> float:
        expected = (probabilities(inverse * scores) * scores).sum(axis=1)
        return float((own - expected).sum()) + PRIOR_IMAGES * (1 / inverse - 1)

    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    for _ in range(30):
        # In the middle of the logarithms: temperatures are factors.
        middle = math.sqrt(low * high)
        if slope(middle) > 0:
            low = middle
        else:
            high = middle
    return 1 / math.sqrt(low * high)


def auroc(known: Array, unknown: Array) -> float | None:
    """Percent of pairs in which the known image has the higher score; ties count half.

    The area under the curve of detections against false alarms; 50 is chance. None where one of
    the two is empty.
    """
    if not len(known) or not len(unknown):
        return None
    ordered = np.sort(unknown)
    below = np.searchsorted(ordered, known, side="left")
    up_to = np.searchsorted(ordered, known, side="right")
    return float(50 * (below + up_to).mean() / len(unknown))
