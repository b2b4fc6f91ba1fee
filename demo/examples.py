"""Images to click, chosen by rule: the first of the sample that shows what is to be shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from .archive import sample_items
from .compare import among
from .model import ClassSet, DemoModel

__all__ = ["RULES", "Found", "find_examples"]

BATCH = 16
MOST = 240
"""Test images that are looked at; a rule that none of them meets has no example."""


@dataclass(frozen=True)
class Case:
    """One image and which of the two models is right about it."""

    is_novel: bool
    is_seen: bool
    zero_shot: bool
    personalized: bool


@dataclass(frozen=True)
class Rule:
    """What an example shows."""

    caption: str
    holds: Callable[[Case], bool]


RULES: tuple[Rule, ...] = (
    Rule(
        "Seen class: only personalized is right",
        lambda case: case.is_seen and case.personalized and not case.zero_shot,
    ),
    Rule(
        "Seen class: both are right",
        lambda case: case.is_seen and case.personalized and case.zero_shot,
    ),
    Rule(
        "Novel class: both are right",
        lambda case: case.is_novel and case.personalized and case.zero_shot,
    ),
    Rule(
        "Novel class: only personalized is right",
        lambda case: case.is_novel and case.personalized and not case.zero_shot,
    ),
    Rule(
        "Novel class: only zero-shot is right",
        lambda case: case.is_novel and case.zero_shot and not case.personalized,
    ),
    Rule("Both are wrong", lambda case: not case.zero_shot and not case.personalized),
)
"""In the order in which the examples stand; the right answers and the wrong ones alike."""


@dataclass(frozen=True)
class Found:
    """One example."""

    caption: str
    name: str
    image: Image.Image
    truth: str
    class_set: ClassSet
    """The names that it was judged among: base or novel, as accuracy is measured."""


def find_examples(model: DemoModel, client: str) -> list[Found]:
    """For each rule the first test image of the sample that meets it, classes in turn.

    Judged as accuracy is measured: images of base classes among the base names, of novel classes
    among the novel names. Empty where no sample suits the model.
    """
    info = model.client(client)
    if model.sample is None:
        return []
    items = sample_items(model, MOST)
    found: dict[int, Found] = {}
    for start in range(0, len(items), BATCH):
        chunk = items[start : start + BATCH]
        images = [item.read() for item in chunk]
        pixels = [model.pixels(image) for image in images for _ in range(2)]
        answers = model.classifier.predict(
            pixels, [0, info.index] * len(chunk), top_k=len(model.class_names), batch_size=2 * BATCH
        )
        for row, (item, image) in enumerate(zip(chunk, images, strict=True)):
            assert item.label is not None
            is_novel = model.is_novel(item.label)
            class_set: ClassSet = "novel" if is_novel else "base"
            names, truth = model.names(class_set, info), model.class_names[item.label]
            plain, own = (
                among(one.top, names)[0].name == truth for one in answers[2 * row : 2 * row + 2]
            )
            case = Case(is_novel, item.label in info.seen, plain, own)
            for number, rule in enumerate(RULES):
                if number not in found and rule.holds(case):
                    found[number] = Found(rule.caption, item.name, image, truth, class_set)
        if len(found) == len(RULES):
            break
    return [found[number] for number in sorted(found)]
