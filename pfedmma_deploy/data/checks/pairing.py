"""Whether images and labels belong together, as far as the paths say what an image shows.

Public code has subset the labels of a data set by an index map and not its paths, which pairs
images with the labels of other images. Where folders are named after classes, that can be seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from pfedmma_deploy.data.checks.names import class_key
from pfedmma_deploy.data.checks.problems import Problem, find_problem
from pfedmma_deploy.types import Dataset, Example

__all__ = ["check_pairing"]

SHIFTED: Final = 0.5
"""Where more than this share of a class's images lie in other classes' folders, it is no slip."""
_PURE: Final = 0.8


def check_pairing(dataset: Dataset) -> list[Problem]:
    """Images whose folders contradict their label.

    A folder anywhere in the path that is named after the label's class speaks for it; without one,
    a folder named after another class speaks against it. Where folders have other names (ids), but
    there is one for each class, an image speaks against its label that is not that of the others
    in its folder.
    """
    keys = [class_key(name) for name in dataset.class_names]
    known = frozenset(keys)
    folders: dict[str, list[Example]] = {}
    for example in dataset.examples:
        folders.setdefault(example.key.rpartition("/")[0], []).append(example)
    named: Counter[int] = Counter()
    wrong: list[Example] = []
    for folder, examples in folders.items():
        said = known & set(map(class_key, folder.split("/")))
        for example in examples if said else ():
            named[example.label] += 1
            if keys[example.label] not in said and said - _places(example):
                wrong.append(example)
    if not named:
        wrong = _against_folder(dataset, folders)
        named = Counter(example.label for example in dataset.examples)
    shifted = any(
        count > SHIFTED * named[label] and count > 1
        for label, count in Counter(example.label for example in wrong).items()
    )
    places = [f"{e.key} (labelled '{dataset.class_names[e.label]}')" for e in wrong]
    return find_problem("shifted-labels" if shifted else "label-against-folder", places)


def _places(example: Example) -> set[str]:
    """Folder names that name a site or a look, even if a class is called the same."""
    return {class_key(name) for name in (example.client, example.domain) if name is not None}


def _against_folder(dataset: Dataset, folders: Mapping[str, Sequence[Example]]) -> list[Example]:
    names: dict[str, list[Example]] = {}
    for folder, examples in folders.items():
        names.setdefault(folder.rpartition("/")[2], []).extend(examples)
    usual: dict[str, int] = {}
    for name, examples in names.items():
        label, count = Counter(example.label for example in examples).most_common(1)[0]
        if count < _PURE * len(examples):
            return []
        usual[name] = label
    if not len(names) == len(set(usual.values())) == len(dataset.class_names):
        return []
    return [
        example
        for name, examples in names.items()
        for example in examples
        if example.label != usual[name]
    ]
