"""What names, paths and a partition show of data, before any image is looked at.

Public code has subset the labels of a data set by an index map and not its paths, which pairs
images with the labels of other images. Where folders are named after classes, that can be seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Final, NamedTuple

from pfedmma_deploy.config import read_table
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
    table = read_table("problems.toml")
    return {name: Kind(**values) for name, values in table.items()}


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
    files = [f"{skipped.path} ({skipped.reason})" for skipped in dataset.skipped]
    problems = [*dataset.problems, *find_problem("skipped-files", files)]
    # A set has no first label, so whether labels fit the folders cannot be asked.
    if isinstance(dataset.class_names, _ORDERLESS):
        kind = type(dataset.class_names).__name__
        unordered = [f"a {kind} of {len(dataset.class_names)}"]
        return (*problems, *find_problem("unordered-classes", unordered))
    return (*problems, *_check_names(dataset.class_names), *_check_pairing(dataset))


def _check_names(names: Sequence[str]) -> Iterator[Problem]:
    """Names that say the same, that are ids, and too few of them to tell anything apart."""
    same: dict[str, list[str]] = {}
    ids = []
    for name in names:
        same.setdefault(class_key(name), []).append(f"'{name}'")
        if is_id(name):
            ids.append(f"'{name}'")
    groups = [" and ".join(group) for group in same.values() if len(group) > 1]
    yield from find_problem("same-class-name", groups)
    if len(names) < 2:
        yield from find_problem("one-class", [*names] or ["none at all"])
    yield from find_problem("id-names", ids)


def check_order(dataset: Dataset) -> list[Problem]:
    """Names out of sorted order, upper and lower case alike or capitals first.

    Data sets that were read by their publishers' lists have the order of these, and no problem.
    """
    names = dataset.class_names
    in_order = (sorted(names), sorted(names, key=str.casefold))
    if dataset.has_published_order or list(names) in in_order:
        return []
    steps = []
    for first, second in pairwise(names):
        if first.casefold() > second.casefold():
            steps.append(f"'{first}' before '{second}'")
    return find_problem("class-order", steps)


def _check_pairing(dataset: Dataset) -> list[Problem]:
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
    # Of each label, images whose folders name any class, and those that lie in another class's.
    named: Counter[int] = Counter()
    wrong: list[Example] = []
    for folder, examples in folders.items():
        said = known & set(map(class_key, folder.split("/")))
        if not said:
            continue
        for example in examples:
            named[example.label] += 1
            if keys[example.label] in said:
                continue
            # A site or a look may be called like a class without meaning it.
            if said - {class_key(example.client or ""), class_key(example.domain or "")}:
                wrong.append(example)
    if not named:
        wrong = _against_their_folder(folders, len(keys))
        named.update(example.label for example in dataset.examples)
    # One slip is a slip; half of a class is a list of labels that was shifted against the images.
    per_label = Counter(example.label for example in wrong).items()
    shifted = any(count > 1 and count > SHIFTED * named[label] for label, count in per_label)
    places = [f"{e.key} (labelled '{dataset.class_names[e.label]}')" for e in wrong]
    return find_problem("shifted-labels" if shifted else "label-against-folder", places)


def _against_their_folder(
    folders: Mapping[str, Sequence[Example]], num_classes: int
) -> list[Example]:
    """Images that have another label than nearly all others in folders of the same name."""
    names: dict[str, list[Example]] = {}
    for folder, examples in folders.items():
        names.setdefault(folder.rpartition("/")[2], []).extend(examples)
    usual: dict[str, int] = {}
    for name, examples in names.items():
        label, count = Counter(example.label for example in examples).most_common(1)[0]
        if count < _PURE * len(examples):
            return []  # folders of something else than classes
        usual[name] = label
    if not len(names) == len(set(usual.values())) == num_classes:
        return []
    wrong = []
    for name, examples in names.items():
        wrong += [example for example in examples if example.label != usual[name]]
    return wrong


def check_federation(federation: Federation, num_shots: int = 0) -> tuple[Problem, ...]:
    """Problems of the partition among clients, given the shots per class (0: all images)."""
    untrained, alone, untested, unvalidated = [], [], [], []
    for client in federation.clients:
        if not client.train:
            untrained.append(client.id)
            continue  # the rest follows from it
        if len(client.classes) == 1:
            alone.append(f"{client.id} ({federation.names(client.classes)[0]})")
        if not client.test:
            untested.append(client.id)
        if not client.val:
            unvalidated.append(client.id)
    return (
        *_check_classes(federation, num_shots),
        *find_problem("client-without-training", untrained),
        *find_problem("one-class-client", alone),
        *find_problem("client-without-test", untested),
        *find_problem("client-without-val", unvalidated),
    )


def _check_classes(federation: Federation, num_shots: int) -> Iterator[Problem]:
    trained = Counter(example.label for client in federation.clients for example in client.train)
    tested = {example.label for example in (*federation.base_test, *federation.novel_test)}
    names = federation.dataset.class_names
    empty, few = [], []
    for label in federation.base:
        if not trained[label]:
            empty.append(names[label])
        elif trained[label] < num_shots:
            few.append(f"{names[label]} ({trained[label]} of {num_shots})")
    classes = (*federation.base, *federation.novel)
    yield from find_problem("no-training-images", empty)
    yield from find_problem("few-shots", few)
    untested = [names[label] for label in classes if label not in tested]
    yield from find_problem("class-without-test", untested)
    if len(federation.base) == 1 and federation.novel:
        yield from find_problem("one-base-class", federation.names(federation.base))
    if len(federation.novel) == 1:
        yield from find_problem("one-novel-class", federation.names(federation.novel))


def check_balance(federation: Federation) -> tuple[Problem, ...]:
    """Classes of the data, and clients, with ten times the training images of the smallest."""
    labels = Counter(e.label for e in federation.dataset.examples if e.split == "train")
    of_classes = {federation.dataset.class_names[label]: labels[label] for label in sorted(labels)}
    of_clients = {client.id: len(client.train) for client in federation.clients if client.train}
    return (
        *find_problem("imbalanced-classes", _largest(of_classes)),
        *find_problem("imbalanced-clients", _largest(of_clients)),
    )


def _largest(counts: Mapping[str, int]) -> list[str]:
    """Those far above the smallest, largest first."""
    smallest = min(counts, key=lambda name: counts[name], default="")
    found = []
    for name in sorted(counts, key=lambda name: -counts[name]):
        if counts[name] >= IMBALANCE * counts[smallest]:
            found.append(f"{name} ({counts[name]:,}; {smallest} has {counts[smallest]:,})")
    return found
