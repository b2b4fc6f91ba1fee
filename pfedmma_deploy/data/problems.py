"""What can be wrong with data: each kind once, with its level and its advice.

A *fatal* problem stops training, which could only produce nonsense. An *error* lets training run,
but its result would be wrong or would look better than it is. A *warning* works, though not as well
as the user may think.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Level, Problem

_SHOWN: Final = 5


class Kind(NamedTuple):
    """One kind of problem: how bad it is, what it is, what to do about it."""

    level: Level
    title: str
    advice: str


def find_problem(kind: str, places: Sequence[str], count: int | None = None) -> list[Problem]:
    """The problem of that kind in a list, or an empty list where `places` is empty."""
    if not places:
        return []
    number = len(places) if count is None else count
    return [Problem(kind, *KINDS[kind], number, tuple(places[:_SHOWN]))]


def require_usable(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Raises `DataError` with every fatal problem, one per line; else returns the others."""
    problems = tuple(problems)
    fatal = [str(problem) for problem in problems if problem.level == "fatal"]
    if fatal:
        raise DataError("the data cannot be trained on as they are:\n- " + "\n- ".join(fatal))
    return problems


KINDS: Final[Mapping[str, Kind]] = {
    "same-class-name": Kind(
        "fatal",
        "class names that differ only in case, spacing or underscores",
        "They are one class to CLIP: merge the folders, or give them other names in classes.txt.",
    ),
    "one-class": Kind(
        "fatal",
        "a single class",
        "There is nothing to tell apart: add a folder for at least one more class.",
    ),
    "one-base-class": Kind(
        "fatal",
        "a single base class",
        "Training needs two classes to tell apart: add classes, or train on all of them with"
        " --classes all.",
    ),
    "empty-class": Kind(
        "fatal",
        "class folders without a readable image",
        "Put images (.jpg .jpeg .png .webp .bmp) into them, or remove the folders.",
    ),
    "empty-client": Kind(
        "fatal",
        "client folders without a readable image",
        "Put class folders with images into them, or remove the folders.",
    ),
    "no-training-images": Kind(
        "fatal",
        "classes to train on without a training image",
        "Add training images for them, or remove these classes.",
    ),
    "client-without-training": Kind(
        "fatal",
        "clients without a training image of a class that is trained on",
        "Add images, remove the client, or train on every class with --classes all.",
    ),
    "unordered-classes": Kind(
        "fatal",
        "class names without an order",
        "Prompts and labels follow the order of the names, and that of a set changes with"
        " every start: give the names as a tuple.",
    ),
    "shifted-labels": Kind(
        "fatal",
        "images whose folder is named after another class than their label",
        "So many point to labels that were renumbered or reordered apart from the paths: look"
        " at the manifest, or at the lines of classes.txt.",
    ),
    "impossible-division": Kind(
        "fatal",
        "the division among clients",
        "Choose other options for it.",
    ),
    "label-against-folder": Kind(
        "error",
        "images whose folder says another class than their label",
        "Look at these: move the image, or correct its label in the manifest.",
    ),
    "id-names": Kind(
        "error",
        "class names that look like ids",
        "CLIP reads class names, and these tell it nothing: give real names in classes.txt,"
        " one line per class, `folder,name`.",
    ),
    "leaked-images": Kind(
        "error",
        "test images that are training or validation images as well",
        "Accuracy on them says nothing: remove the copies from one of the two sides.",
    ),
    "image-in-two-classes": Kind(
        "error",
        "images that are in two classes",
        "One of the two labels is wrong, or the classes overlap: keep one copy.",
    ),
    "chance-accuracy": Kind(
        "error",
        "zero-shot accuracy near chance",
        "A backbone that knows such images does far better, so look for the cause before"
        " training: labels that were mixed up, names that are ids or in a language that the"
        " backbone was not trained on, a prompt that does not fit, or images unlike those"
        " that it was trained on.",
    ),
    "names-exchanged": Kind(
        "error",
        "classes whose images the backbone takes for those of another class",
        "Names and folders seem to be paired wrongly: look at some images of each, then at"
        " the lines of classes.txt or of the manifest.",
    ),
    "skipped-files": Kind(
        "warning",
        "files skipped because they cannot be read",
        "Replace or remove them; everything else is used.",
    ),
    "no-split-file": Kind(
        "warning",
        "split file of the few-shot papers missing, the parts are those of the authors",
        "Figures are comparable with published ones only with it: put it into the data folder.",
    ),
    "other-files": Kind(
        "warning",
        "files left alone because they are no images of a known kind",
        "Images are .jpg .jpeg .png .webp .bmp; convert others if they should take part.",
    ),
    "empty-class-folder": Kind(
        "warning",
        "empty class folders of classes that have images elsewhere",
        "There the class counts as absent.",
    ),
    "one-client-folder": Kind(
        "warning",
        "a single folder of class folders, read as one client",
        "If it is no client but the data set itself, name that folder instead.",
    ),
    "few-images": Kind(
        "warning",
        "classes with fewer than 5 images where a test or validation part had to be set aside",
        "None of their images validates, and one at most is a test image: add images for"
        " figures that mean something.",
    ),
    "few-shots": Kind(
        "warning",
        "classes with fewer training images than the shots asked for",
        "All that they have are used: add images, or ask for fewer with --shots.",
    ),
    "class-without-test": Kind(
        "warning",
        "classes without a test image",
        "They do not count in any accuracy: add test images.",
    ),
    "one-class-client": Kind(
        "warning",
        "clients with one class only",
        "They are trained, against the names of all base classes, but a model that always"
        " answers their class would be right on all their own images: read their local"
        " accuracy beside base and novel.",
    ),
    "one-novel-class": Kind(
        "warning",
        "a single novel class",
        "Scored among novel names alone it is always right: novel accuracy will be 100 %.",
    ),
    "client-without-test": Kind(
        "warning",
        "clients without a test image of their own classes",
        "They have no local accuracy: add images, or use fewer clients.",
    ),
    "client-without-val": Kind(
        "warning",
        "clients without a validation image",
        "Their checkpoint cannot be chosen by validation: add images, or use fewer clients.",
    ),
    "held-by-several": Kind(
        "warning",
        "images that more than one client holds",
        "A client's data are not its own then: keep each at one client.",
    ),
    "duplicate-images": Kind(
        "warning",
        "images that are there more than once",
        "They count twice, and where test images are set aside from these, one copy may train"
        " and the other test: remove the copies.",
    ),
    "blank-images": Kind(
        "warning",
        "images of a single colour",
        "There is nothing to see on them: remove them.",
    ),
    "tiny-images": Kind(
        "warning",
        "images less than 16 pixels wide or high",
        "Enlarged to the backbone's input they are a blur: use larger ones, or remove them.",
    ),
    "changed-data": Kind(
        "warning",
        "data that changed since the clients file was written",
        "All images that it names are there and take part, others do not: divide anew if they"
        " should.",
    ),
    "class-order": Kind(
        "warning",
        "class names that are not in sorted order",
        "Base and novel classes are the first and second half of this order, which is stored"
        " with every run. All is well if it is the data set's own; else sort the names.",
    ),
    "imbalanced-classes": Kind(
        "warning",
        "largest classes with ten or more times the training images of the smallest",
        "The large ones decide: draw equally many with --shots, or add images.",
    ),
    "imbalanced-clients": Kind(
        "warning",
        "largest clients with ten or more times the training images of the smallest",
        "Averages weigh clients by their images: the large ones decide.",
    ),
}
