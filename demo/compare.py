"""One image, several models: zero-shot CLIP beside a client's own, and another client's."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from PIL import Image

from pfedmma_deploy.data.class_names import class_key
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.runtime import ClassScore

from .model import ClassSet, DemoModel, Kind
from .uploads import read_image, remarks

SHOWN = 5


@dataclass(frozen=True)
class Answer:
    """One class that a model considers."""

    name: str
    probability: float
    """Among the names of the class set, 0 to 1."""
    kind: Kind
    """What the class is to the client."""


@dataclass(frozen=True)
class ModelAnswers:
    """What one model says."""

    client: str
    """`zero-shot`, or the client's id."""
    strength: float
    """How much of what the client adds to CLIP counts: 1 is as trained."""
    top: tuple[Answer, ...]
    """Best first, five at most."""
    is_right: bool | None
    """None where the true class is not known, or is none of the names."""
    is_unknown: bool = False
    """Whether the image is like nothing that the client has: then no class is believed."""
    known: float | None = None
    """Score of the image; None where the client is not calibrated."""
    threshold: float | None = None
    """Below it an image is unknown; None where none is drawn, as for typed names."""


@dataclass(frozen=True)
class Comparison:
    """The answers of zero-shot CLIP, of a client, and of another client if one was chosen."""

    models: tuple[ModelAnswers, ...]
    truth: str | None
    agree: bool
    """Whether zero-shot and the client choose the same class."""
    class_set: ClassSet
    names: int
    """How many class names the models chose from."""
    device: str
    precision: str
    milliseconds: float
    """For all models together, in one call."""
    remarks: tuple[str, ...]

    @property
    def zero_shot(self) -> ModelAnswers:
        """Plain CLIP."""
        return self.models[0]

    @property
    def personalized(self) -> ModelAnswers:
        """The chosen client."""
        return self.models[1]


def compare(
    model: DemoModel,
    source: Path | bytes | Image.Image,
    client: str,
    class_set: ClassSet = "all",
    typed: str = "",
    other: str | None = None,
    truth: str | None = None,
    strength: float | None = None,
) -> Comparison:
    """Ask several models for the class of one image, in a single call of the ONNX model.

    Args:
        model: the bundle.
        source: file or bytes of the image, or the image itself (RGB).
        client: id of the client whose model stands beside zero-shot.
        class_set: the names to choose from.
        typed: with `class_set="typed"`, the names, separated by commas; each model encodes them
            with its own text tower.
        other: id of one more client to ask; empty for none.
        truth: name of the image's true class; empty where it is not known.
        strength: how much of what clients add to CLIP counts, 0 to 1.5; None takes their defaults.

    Raises:
        UsageError: an unknown client, class set or class, typed names that cannot be used, or a
            strength beyond its range.
        BundleError: another strength than 1, and the bundle's models take none.
        ImageError: the image cannot be read.
    """
    clients = [model.client(client)]
    if other and other != client:
        clients.append(model.client(other))
    names = model.names(class_set, clients[0], typed)
    truth = require_truth(model, truth, names)
    image = source if isinstance(source, Image.Image) else read_image(source)
    pixels = model.pixels(image)
    indices = [0, *map(attrgetter("index"), clients)]
    # Known names are chosen from all known names, whose features the bundle has: no text tower.
    asked = names if class_set == "typed" else None
    # Zero-shot has nothing that a strength could act on.
    strengths = [None, *[strength] * len(clients)]
    started = time.perf_counter()
    found = model.classifier.predict(
        [pixels] * len(indices),
        indices,
        asked,
        top_k=max(len(names), len(model.class_names)),
        strength=strengths,
    )
    milliseconds = (time.perf_counter() - started) * 1000
    answers = []
    # Zero-shot's classes are seen or not with the eyes of the client beside it.
    for one, viewer in zip(found, [clients[0], *clients], strict=True):
        top = []
        for score in among(one.top, names)[:SHOWN]:
            top.append(Answer(score.name, score.probability, model.kind(score.name, viewer)))
        # A model cannot be wrong about a class that it was not allowed to name.
        is_right = top[0].name == truth if truth in names else None
        verdict = one.verdict
        answers.append(
            ModelAnswers(
                client=one.client,
                strength=one.strength,
                top=tuple(top),
                is_right=is_right,
                is_unknown=verdict.is_unknown,
                known=verdict.known,
                threshold=verdict.threshold,
            )
        )
    return Comparison(
        models=tuple(answers),
        truth=truth,
        agree=answers[0].top[0].name == answers[1].top[0].name,
        class_set=class_set,
        names=len(names),
        device=model.classifier.device,
        precision=model.manifest.precision,
        milliseconds=milliseconds,
        remarks=() if isinstance(source, Image.Image) else tuple(remarks(source)),
    )


def among(scores: Sequence[ClassScore], names: Collection[str]) -> list[ClassScore]:
    """The scores of `names` alone, adding up to 1: softmax over them is the same, renormalised."""
    wanted = set(names)
    kept = [score for score in scores if score.name in wanted]
    total = sum(map(attrgetter("probability"), kept))
    if not total:
        # All others are so much likelier that nothing is left to share out.
        return [ClassScore(score.name, 1 / len(kept)) for score in kept]
    return [ClassScore(score.name, score.probability / total) for score in kept]


def require_truth(model: DemoModel, truth: str | None, names: Collection[str]) -> str | None:
    """The true class by the name it has among `names`, or else in the bundle; None stays None.

    Raises:
        UsageError: it is neither.
    """
    if not truth:
        return None
    for name in (*names, *model.class_names):
        if class_key(name) == class_key(truth):
            return name
    raise UsageError(
        f"The true class {truth!r} is none of the model's classes ({', '.join(model.class_names)})"
        " and none of the names typed."
    )
