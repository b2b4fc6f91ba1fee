"""The plain backbone on a data set: its accuracy, and whether the labels say what it sees."""

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

_MAX_IMAGES: Final = 2000
_KAPPA: Final = 0.05
_MIN_PER_CLASS: Final = 5

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class ZeroShot:
    """Zero-shot accuracy in percent, and on how many images."""

    accuracy: float
    images: int
    domains: dict[str, float]
    """By domain, where the data have several."""
    classes: dict[str, float]
    """By class name: recall."""


@dataclass(frozen=True, slots=True)
class Sanity:
    """Zero-shot accuracy beside chance, in percent, and what it gives away."""

    accuracy: float
    chance: float
    images: int
    problems: tuple[Problem, ...]


def evaluate_zero_shot(
    backbone: Backbone, dataset: Dataset, prompt: str, *, progress: Progress | None = None
) -> ZeroShot:
    """Accuracy of the plain backbone over all class names, on the test images (all, if none)."""
    examples = [e for e in dataset.examples if e.split == "test"] or list(dataset.examples)
    labels, answers = classify(backbone, dataset, examples, prompt, progress=progress)
    right = 100.0 * (labels == answers)
    domain = np.array([example.domain or "" for example in examples])
    domains = [name for name in dict.fromkeys(domain.tolist()) if name]
    return ZeroShot(
        accuracy=float(right.mean()),
        images=len(examples),
        domains={name: float(right[domain == name].mean()) for name in domains if len(domains) > 1},
        classes={
            dataset.class_names[label]: float(right[labels == label].mean())
            for label in np.unique(labels)
        },
    )


@torch.inference_mode()
def classify(
    backbone: Backbone,
    dataset: Dataset,
    examples: Sequence[Example],
    prompt: str,
    *,
    progress: Progress | None = None,
) -> tuple[IntArray, IntArray]:
    """Labels [N] of examples, and the backbone's answers [N] among all class names."""
    pixels = PixelLoader(dataset, backbone.image_size, backbone.resize_mode, backbone.interpolation)
    texts = backbone.encode_text(class_texts(backbone, dataset.class_names, prompt).prompts)
    chunks = [examples[i : i + BATCH] for i in range(0, len(examples), BATCH)]
    answers: list[int] = []
    for chunk in (progress or Silent()).track(chunks, "batches of images", len(chunks)):
        features = backbone.encode_image(torch.from_numpy(pixels.load(chunk)))
        answers += (features @ texts.T).argmax(dim=1).tolist()
    return np.array([example.label for example in examples]), np.array(answers)


def check_zero_shot(
    backbone: Backbone, dataset: Dataset, prompt: str, *, progress: Progress | None = None
) -> Sanity:
    """Classifies up to 2,000 images, equally many of each class, without training.

    *Near chance* is an accuracy that is not three standard errors above chance, or less than a
    twentieth of the way from chance to 100 %.
    """
    examples = _choose(dataset)
    table = np.zeros((len(dataset.class_names),) * 2, np.int64)
    np.add.at(table, classify(backbone, dataset, examples, prompt, progress=progress), 1)
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


def find_exchanged(table: IntArray) -> list[tuple[int, int, float]]:
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
