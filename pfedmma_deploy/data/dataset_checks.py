"""What names, paths and a partition show of data, before any image is looked at.

Public code has subset the labels of a data set by an index map and not its paths, which pairs
images with the labels of other images. Where folders are named after classes, that can be seen.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import pairwise
from types import MappingProxyType
from typing import Final, NamedTuple

from pfedmma_deploy.data.class_names import class_key, is_id
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Dataset, Example, Federation, Level, Problem

IMBALANCE: Final = 10
"""Times as many images as the smallest has."""
SHIFTED: Final = 0.5
"""Where more than this share of a class's images lie in other classes' folders, it is no slip."""
_PURE: Final = 0.8
_SHOWN: Final = 5
_ORDERLESS: Final = (set, frozenset, dict)


class Kind(NamedTuple):
    """One kind of problem: how bad it is, what it is, what to do about it."""

    level: Level
    title: str
    advice: str


@cache
def problem_kinds() -> Mapping[str, Kind]:
    """Every kind of problem by name, in the order of the documentation."""
    file = files("pfedmma_deploy").joinpath("assets", "problems.toml")
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    return MappingProxyType({name: Kind(**values) for name, values in table.items()})


def find_problem(kind: str, places: Sequence[str], count: int | None = None) -> list[Problem]:
    """The problem of that kind in a list, or an empty list where `places` is empty."""
    if not places:
        return []
    number = len(places) if count is None else count
    return [Problem(kind, *problem_kinds()[kind], number, tuple(places[:_SHOWN]))]


def require_usable(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Raises `DataError` with every fatal problem, one per line; else returns the others."""
    problems = tuple(problems)
    fatal = [str(problem) for problem in problems if problem.level == "fatal"]
    if fatal:
        raise DataError("the data cannot be trained on as they are:\n- " + "\n- ".join(fatal))
    return problems


def check_dataset(dataset: Dataset) -> tuple[Problem, ...]:
    """Problems of the files, folders, labels and class names; quick, so done before each training.

    Those that its reader found come first.
    """
    problems: list[Problem] = list(dataset.problems)
    files = [f"{skipped.path} ({skipped.reason})" for skipped in dataset.skipped]
    problems += find_problem("skipped-files", files)
    problems += check_names(dataset.class_names)
    if all(problem.kind != "unordered-classes" for problem in problems):
        problems += check_pairing(dataset)
    return tuple(problems)


def check_names(names: Sequence[str]) -> list[Problem]:
    """Names that say the same, that are ids, and too few of them to tell anything apart."""
    if isinstance(names, _ORDERLESS):
        return find_problem("unordered-classes", [f"a {type(names).__name__} of {len(names)}"])
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(class_key(name), []).append(f"'{name}'")
    same = [" and ".join(group) for group in groups.values() if len(group) > 1]
    problems = find_problem("same-class-name", same)
    if len(names) < 2:
        problems += find_problem("one-class", [*names] or ["none at all"])
    return problems + find_problem("id-names", [f"'{name}'" for name in names if is_id(name)])


def check_order(dataset: Dataset) -> list[Problem]:
    """Names out of sorted order, upper and lower case alike or capitals first.

    Data sets that were read by their publishers' lists have the order of these, and no problem.
    """
    names = dataset.class_names
    in_order = (sorted(names), sorted(names, key=str.casefold))
    if dataset.has_published_order or list(names) in in_order:
        return []
    steps = [
        f"'{first}' before '{second}'"
        for first, second in pairwise(names)
        if first.casefold() > second.casefold()
    ]
    return find_problem("class-order", steps)


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


def check_balance(federation: Federation) -> tuple[Problem, ...]:
    """Classes of the data, and clients, with ten times the training images of the smallest."""
    names = federation.dataset.class_names
    labels = Counter(e.label for e in federation.dataset.examples if e.split == "train")
    of_classes = {names[label]: count for label, count in sorted(labels.items())}
    of_clients = {client.id: len(client.train) for client in federation.clients if client.train}
    return (
        *find_problem("imbalanced-classes", _largest(of_classes)),
        *find_problem("imbalanced-clients", _largest(of_clients)),
    )


def _largest(counts: Mapping[str, int]) -> list[str]:
    """Those far above the smallest, largest first."""
    if not counts:
        return []
    smallest = min(counts, key=lambda name: counts[name])
    order = sorted(counts, key=lambda name: -counts[name])
    return [
        f"{name} ({counts[name]:,}; {smallest} has {counts[smallest]:,})"
        for name in order
        if counts[name] >= IMBALANCE * counts[smallest]
    ]


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
