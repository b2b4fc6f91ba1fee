"""What is wrong with a division among clients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from pfedmma_deploy.data.checks.problems import Problem, find_problem
from pfedmma_deploy.types import Federation

__all__ = ["check_balance", "check_federation"]

IMBALANCE: Final = 10
"""Times as many images as the smallest has."""


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
