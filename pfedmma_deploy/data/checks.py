"""What is wrong with a data set or its division among clients, said before training starts.

A problem is fatal where training could only produce nonsense, and a warning where it works but
not as well as the user may think. Each kind stands once in `KINDS`, with its advice.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Dataset, Federation

__all__ = [
    "KINDS",
    "Problem",
    "check_dataset",
    "check_federation",
    "class_key",
    "find_problem",
    "require_usable",
]

_SHOWN = 5


class Kind(NamedTuple):
    """One kind of problem: whether it stops training, what it is, what to do about it."""

    fatal: bool
    title: str
    advice: str


KINDS: Final = MappingProxyType(
    {
        "same-class-name": Kind(
            True,
            "class names that differ only in case, spacing or underscores",
            "They are one class to CLIP: merge the folders, or give them other names in"
            " classes.txt.",
        ),
        "one-class": Kind(
            True,
            "a single class",
            "There is nothing to tell apart: add a folder for at least one more class.",
        ),
        "one-base-class": Kind(
            True,
            "a single base class",
            "Training needs two classes to tell apart: add classes, or train on all of them with"
            " --classes all.",
        ),
        "empty-class": Kind(
            True,
            "class folders without a readable image",
            "Put images (.jpg .jpeg .png .webp .bmp) into them, or remove the folders.",
        ),
        "empty-client": Kind(
            True,
            "client folders without a readable image",
            "Put class folders with images into them, or remove the folders.",
        ),
        "no-training-images": Kind(
            True,
            "classes to train on without a training image",
            "Add training images for them, or remove these classes.",
        ),
        "client-without-training": Kind(
            True,
            "clients without a training image of a class that is trained on",
            "Add images, remove the client, or train on every class with --classes all.",
        ),
        "skipped-files": Kind(
            False,
            "files skipped because they cannot be read",
            "Replace or remove them; everything else is used.",
        ),
        "other-files": Kind(
            False,
            "files left alone because they are no images of a known kind",
            "Images are .jpg .jpeg .png .webp .bmp; convert others if they should take part.",
        ),
        "empty-class-folder": Kind(
            False,
            "empty class folders of classes that have images elsewhere",
            "There the class counts as absent.",
        ),
        "one-client-folder": Kind(
            False,
            "a single folder of class folders, read as one client",
            "If it is no client but the data set itself, name that folder instead.",
        ),
        "few-images": Kind(
            False,
            "classes with fewer than 5 images where a test or validation part had to be set aside",
            "None of their images validates, and one at most is a test image: add images for"
            " figures that mean something.",
        ),
        "few-shots": Kind(
            False,
            "classes with fewer training images than the shots asked for",
            "All that they have are used: add images, or ask for fewer with --shots.",
        ),
        "class-without-test": Kind(
            False,
            "classes without a test image",
            "They do not count in any accuracy: add test images.",
        ),
        "one-class-client": Kind(
            False,
            "clients with one class only",
            "They are trained, against the names of all base classes, but a model that always"
            " answers their class would be right on all their own images: read their local"
            " accuracy beside base and novel.",
        ),
        "one-novel-class": Kind(
            False,
            "a single novel class",
            "Scored among novel names alone it is always right: novel accuracy will be 100 %.",
        ),
        "client-without-test": Kind(
            False,
            "clients without a test image of their own classes",
            "They have no local accuracy: add images, or use fewer clients.",
        ),
        "client-without-val": Kind(
            False,
            "clients without a validation image",
            "Their checkpoint cannot be chosen by validation: add images, or use fewer clients.",
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of finding: how often, where for example, and what to do."""

    kind: str
    """A key of `KINDS`."""
    count: int
    examples: tuple[str, ...]
    """The first few places, not all `count` of them."""
    advice: str
    fatal: bool

    def __str__(self) -> str:
        shown = ", ".join(self.examples)
        more = self.count - len(self.examples)
        rest = f" and {more:,} more" if more > 0 else ""
        return f"{KINDS[self.kind].title} ({self.count:,}): {shown}{rest}. {self.advice}"


def find_problem(kind: str, places: Sequence[str], count: int | None = None) -> list[Problem]:
    """The problem of that kind in a list, or an empty list where `places` is empty."""
    if not places:
        return []
    fatal, _, advice = KINDS[kind]
    shown = tuple(places[:_SHOWN])
    return [Problem(kind, len(places) if count is None else count, shown, advice, fatal)]


def require_usable(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Raises `DataError` with every fatal problem, one per line; else returns the warnings."""
    problems = tuple(problems)
    fatal = [str(problem) for problem in problems if problem.fatal]
    if fatal:
        raise DataError("the data cannot be trained on as they are:\n- " + "\n- ".join(fatal))
    return problems


def class_key(name: str) -> str:
    """What two class names have in common when a reader would call them the same."""
    text = unicodedata.normalize("NFKC", name).replace("_", " ")
    return re.sub(r"\s+", " ", text).strip().casefold()


def check_dataset(dataset: Dataset) -> tuple[Problem, ...]:
    """Problems of the images, folders and class names, the fatal ones among them.

    A data set may carry findings of its own reader in an attribute `problems`.
    """
    problems: list[Problem] = list(getattr(dataset, "problems", ()))
    files = [f"{skipped.path} ({skipped.reason})" for skipped in dataset.skipped]
    problems += find_problem("skipped-files", files)
    problems += find_problem("same-class-name", _same_names(dataset.class_names))
    if len(dataset.class_names) < 2:
        problems += find_problem("one-class", dataset.class_names or ("none at all",))
    return tuple(problems)


def check_federation(federation: Federation, num_shots: int = 0) -> tuple[Problem, ...]:
    """Problems of the division among clients, given the shots per class (0: all images)."""
    names = federation.dataset.class_names
    clients = federation.clients
    problems = _check_classes(federation, num_shots)
    problems += find_problem("client-without-training", [c.id for c in clients if not c.train])
    trained = [client for client in clients if client.train]
    alone = [f"{c.id} ({names[c.classes[0]]})" for c in trained if len(c.classes) == 1]
    problems += find_problem("one-class-client", alone)
    problems += find_problem("client-without-test", [c.id for c in trained if not c.test])
    problems += find_problem("client-without-val", [c.id for c in trained if not c.val])
    return tuple(problems)


def _check_classes(federation: Federation, num_shots: int) -> list[Problem]:
    trained = [0] * len(federation.dataset.class_names)
    for client in federation.clients:
        for example in client.train:
            trained[example.label] += 1
    tested = {example.label for example in (*federation.base_test, *federation.novel_test)}
    names = federation.dataset.class_names
    empty = [names[label] for label in federation.base if trained[label] == 0]
    few = [
        f"{names[label]} ({trained[label]} of {num_shots})"
        for label in federation.base
        if 0 < trained[label] < num_shots
    ]
    untested = [
        names[label] for label in (*federation.base, *federation.novel) if label not in tested
    ]
    problems = find_problem("no-training-images", empty) + find_problem("few-shots", few)
    problems += find_problem("class-without-test", untested)
    if len(federation.base) == 1 and federation.novel:
        problems += find_problem("one-base-class", federation.names(federation.base))
    if len(federation.novel) == 1:
        problems += find_problem("one-novel-class", federation.names(federation.novel))
    return problems


def _same_names(names: Sequence[str]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(class_key(name), []).append(f"'{name}'")
    return [" and ".join(group) for group in groups.values() if len(group) > 1]
