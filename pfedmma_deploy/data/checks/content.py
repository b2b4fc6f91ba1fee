"""What only the pixels show: copies, leakage from training into testing, blank and tiny images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pfedmma_deploy.data.checks.problems import Problem, find_problem
from pfedmma_deploy.data.facts import Facts
from pfedmma_deploy.types import Dataset, Example, Federation

__all__ = ["check_content", "check_copies"]

TINY: Final = 16
"""Pixels; CIFAR's images have 32."""
BLANK: Final = 1.0
"""Standard deviation of the pixel values (0 to 255) below which an image shows nothing."""


def check_content(
    dataset: Dataset, facts: Mapping[str, Facts], federation: Federation | None = None
) -> tuple[Problem, ...]:
    """Problems of the images in `facts`; those of the copies with the division's splits.

    Args:
        dataset: where the images are from.
        facts: by key, as `facts.read_facts` gives them.
        federation: whose clients and splits count; None takes the data set's own.
    """
    known = [example for example in dataset.examples if example.key in facts]
    blank = [e.key for e in known if facts[e.key].spread < BLANK]
    sizes = [(e.key, facts[e.key].width, facts[e.key].height) for e in known]
    tiny = [
        f"{key} ({width} x {height})" for key, width, height in sizes if min(width, height) < TINY
    ]
    return (
        *check_copies(dataset, facts, federation),
        *find_problem("blank-images", blank),
        *find_problem("tiny-images", tiny),
    )


def check_copies(
    dataset: Dataset, facts: Mapping[str, Facts], federation: Federation | None = None
) -> tuple[Problem, ...]:
    """Images with the same pixels: across training and testing, classes, clients, or just twice."""
    groups: dict[str, list[Example]] = {}
    examples = dataset.examples if federation is None else _dealt(federation)
    for example in examples:
        fact = facts.get(example.key)
        # All blank images of a size are alike; what is wrong with them is that they are blank.
        if fact is not None and fact.spread >= BLANK:
            groups.setdefault(fact.digest, []).append(example)
    found = _Copies(dataset.class_names)
    for group in groups.values():
        if len(group) > 1:
            found.add(group)
    return (
        *find_problem("leaked-images", found.leaked, found.num_leaked),
        *find_problem("image-in-two-classes", found.two_classes),
        *find_problem("held-by-several", found.several),
        *find_problem("duplicate-images", found.twice),
    )


def _dealt(federation: Federation) -> Iterable[Example]:
    """Every image that takes part, once, with the client that holds it and the split it is in."""
    seen: set[str] = set()
    for client in federation.clients:
        for example in (*client.train, *client.val, *client.test):
            seen.add(example.key)
            yield _at(example, client.id)
    for example in (*federation.base_test, *federation.novel_test):
        if example.key not in seen:
            seen.add(example.key)
            yield _at(example, None)


def _at(example: Example, client: str | None) -> Example:
    return Example(example.key, example.label, example.split, client, example.domain)


@dataclass(slots=True)
class _Copies:
    class_names: Sequence[str]
    leaked: list[str] = field(default_factory=list)
    num_leaked: int = 0
    two_classes: list[str] = field(default_factory=list)
    several: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)

    def add(self, group: Sequence[Example]) -> None:
        tests = [example for example in group if example.split == "test"]
        rest = [example for example in group if example.split != "test"]
        if tests and rest:
            self.leaked.append(f"{tests[0].key} (test) is {rest[0].key} ({rest[0].split})")
            self.num_leaked += len(tests)
        labels = {example.label: example for example in reversed(group)}
        if len(labels) > 1:
            self.two_classes.append(
                " and ".join(
                    f"{example.key} ({self.class_names[label]})"
                    for label, example in sorted(labels.items())
                )
            )
        holders = {e.client: e for e in reversed(group) if e.client is not None}
        if len(holders) > 1:
            self.several.append(
                " and ".join(f"{e.key} (client {name})" for name, e in sorted(holders.items()))
            )
        first: dict[tuple[int, bool, str | None], Example] = {}
        for example in group:
            place = example.label, example.split == "test", example.client
            if place in first:
                self.twice.append(f"{example.key} is {first[place].key}")
            first.setdefault(place, example)
