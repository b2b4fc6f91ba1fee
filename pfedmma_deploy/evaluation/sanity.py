"""Whether a backbone sees in the images what their labels say, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from pfedmma_deploy.backbone.clip import Backbone, class_texts
from pfedmma_deploy.data.dataset_checks import find_problem
from pfedmma_deploy.data.pixels import PixelLoader
from pfedmma_deploy.evaluation.accuracy import BATCH
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.types import Dataset, Example, Problem

__all__ = ["Sanity", "check_zero_shot", "find_exchanged"]

_MAX_IMAGES: Final = 2000
_KAPPA: Final = 0.05
_MIN_PER_CLASS: Final = 5


@dataclass(frozen=True, slots=True)
class Sanity:
    """Zero-shot accuracy beside chance, in percent, and what it gives away."""

    accuracy: float
    chance: float
    images: int
    problems: tuple[Problem, ...]


@torch.inference_mode()
def check_zero_shot(
    backbone: Backbone, dataset: Dataset, prompt: str, *, progress: Progress | None = None
) -> Sanity:
    """Classifies up to 2,000 images, equally many of each class, without training.

    *Near chance* is an accuracy that is not three standard errors above chance, or less than a
    twentieth of the way from chance to 100 %.
    """
    examples = _choose(dataset)
    pixels = PixelLoader(dataset, backbone.image_size, backbone.resize_mode, backbone.interpolation)
    texts = backbone.encode_text(class_texts(backbone, dataset.class_names, prompt).prompts)
    chunks = [examples[i : i + BATCH] for i in range(0, len(examples), BATCH)]
    table = np.zeros((len(dataset.class_names),) * 2, np.int64)
    for chunk in (progress or Silent()).track(chunks, "batches of images", len(chunks)):
        features = backbone.encode_image(torch.from_numpy(pixels.load(chunk)))
        answers = (features @ texts.T).argmax(dim=1).tolist()
        np.add.at(table, ([example.label for example in chunk], answers), 1)
    accuracy, chance = float(np.trace(table)) / len(examples), 1 / len(dataset.class_names)
    error = float(np.sqrt(chance * (1 - chance) / len(examples)))
    near = accuracy < max(chance + 3 * error, chance + _KAPPA * (1 - chance))
    said = (
        f"{accuracy:.1%} of {len(examples):,} images right; chance among {len(table)} classes is"
        f" {chance:.1%}"
    )
    exchanged = [
        f"'{dataset.class_names[a]}' ({share:.0%} look like '{dataset.class_names[b]}')"
        for a, b, share in find_exchanged(table)
    ]
    problems = (
        *find_problem("chance-accuracy", [said] if near else []),
        *find_problem("names-exchanged", exchanged),
    )
    return Sanity(accuracy * 100, chance * 100, len(examples), problems)


def find_exchanged(table: NDArray[np.int64]) -> list[tuple[int, int, float]]:
    """Classes that a backbone takes for another one, whose own images it does not take for it.

    So classes that merely look alike do not count.

    Args:
        table: images [C, C] of each class (rows) by the answer (columns).

    Returns:
        (class, answer, share of the class's images with that answer).
    """
    sizes = table.sum(axis=1)
    shares = table / np.maximum(sizes, 1)[:, None]
    found = []
    for label in np.flatnonzero(sizes >= _MIN_PER_CLASS):
        answer = int(shares[label].argmax())
        share = float(shares[label, answer])
        own = max(shares[label, label], shares[answer, answer])
        if answer != label and share >= 0.4 and own <= share / 2:
            found.append((int(label), answer, share))
    return found


def _choose(dataset: Dataset) -> Sequence[Example]:
    """The first images of each class, test images before others: the same at every call."""
    ordered = sorted(dataset.examples, key=lambda example: example.split != "test")
    each = max(1, _MAX_IMAGES // len(dataset.class_names))
    taken = [0] * len(dataset.class_names)
    chosen = []
    for example in ordered:
        if taken[example.label] < each:
            taken[example.label] += 1
            chosen.append(example)
    return chosen
