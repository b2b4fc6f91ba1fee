"""Pachinko allocation: clients that differ in superclasses, and in classes within them.

Li and McCallum, ICML 2006; for federated learning Reddi et al., "Adaptive Federated Optimization",
ICLR 2021, appendix F, who divided CIFAR-100 so.
"""

from __future__ import annotations

import tomllib
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.config import read_table
from pfedmma_deploy.data.class_names import class_key
from pfedmma_deploy.data.partition import Indices, Labels, Share, apportion, count_classes, deal
from pfedmma_deploy.errors import DataError

CLASS_BETA: Final = 10.0
"""Concentration over the classes of a superclass; 10 in Reddi et al."""
_FORM: Final = 'expected lines like\n  "large carnivores" = ["bear", "leopard", "lion"]'


def pachinko(
    labels: Labels,
    superclasses: Sequence[int],
    clients: int,
    beta: float,
    rng: np.random.Generator,
) -> tuple[Share, ...]:
    """Equally many training images for each client (or one more), of superclasses of its own.

    A client draws proportions of the superclasses from Dirichlet(beta) and, for each superclass,
    proportions of its classes from Dirichlet(10). Then it draws its images one by one: superclass,
    class, image, without replacement; what is used up is left out of later draws. Validation and
    test images of a class are dealt out by the proportions that came out for training.

    Args:
        labels: labels of each split; "train" decides which classes are dealt out.
        superclasses: the superclass of each label.
        clients: N.
        beta: concentration over superclasses; 0.1 in Reddi et al.
        rng: the only source of chance.

    Raises:
        DataError: fewer training images than clients.
    """
    total = len(labels["train"])
    if total < clients:
        raise DataError(
            f"partition 'pachinko' gives every client equally many training images, but there are"
            f" {clients} clients and {total} images: use fewer clients, or more shots or images"
        )
    classes = np.unique(labels["train"])
    groups = np.unique([superclasses[label] for label in classes], return_inverse=True)[1]
    totals = {split: count_classes(of_split, classes) for split, of_split in labels.items()}
    train = draw_counts(totals["train"], groups, clients, beta, rng)
    counts = {split: apportion(of_split, train) for split, of_split in totals.items()}
    return deal(labels, classes, counts, rng)


def draw_counts(
    totals: Indices,
    groups: NDArray[np.int64],
    clients: int,
    beta: float,
    rng: np.random.Generator,
) -> Indices:
    """How many images of each class each client draws, [C, N]; rows add up to `totals` [C].

    `groups` [C] is the superclass of each class, 0 to G - 1. The sizes of clients differ by at most
    one image.
    """
    left = totals.astype(np.int64)
    members = [np.flatnonzero(groups == group) for group in range(int(groups.max()) + 1)]
    in_groups = np.array([left[each].sum() for each in members])
    counts = np.zeros((len(totals), clients), np.int64)
    size, more = divmod(int(left.sum()), clients)
    for client in range(clients):
        of_groups = rng.dirichlet(np.full(len(members), beta))
        of_classes = [rng.dirichlet(np.full(len(each), CLASS_BETA)) for each in members]
        # Which draws lead where changes only when a class or a superclass is used up.
        to_group = _ends(of_groups, in_groups)
        to_class = [_ends(p, left[each]) for p, each in zip(of_classes, members, strict=True)]
        for first, second in rng.random((size + (client < more), 2)).tolist():
            group = bisect_right(to_group, first)
            label = int(members[group][bisect_right(to_class[group], second)])
            counts[label, client] += 1
            left[label] -= 1
            in_groups[group] -= 1
            if left[label] == 0:
                to_class[group] = _ends(of_classes[group], left[members[group]])
            if in_groups[group] == 0:
                to_group = _ends(of_groups, in_groups)
    return counts


def _ends(weights: NDArray[np.float64], left: Indices) -> list[float]:
    """Where in 0..1 the places end that have images left, each as long as its weight.

    `bisect_right` finds the place of a number below 1, and never one without images.
    """
    weights = np.where(left > 0, weights, 0.0)
    if weights.sum() <= 0:  # what is left has a proportion too small for a float
        weights = left.astype(np.float64)
    ends = np.cumsum(weights)
    if ends[-1] > 0:
        ends /= ends[-1]
        ends[np.flatnonzero(weights)[-1] :] = 1.0
    return [float(end) for end in ends]


def read_superclasses(class_names: Sequence[str], file: Path | None = None) -> tuple[int, ...]:
    """The superclass of each label, as a number from 0 in the order of the table.

    Args:
        class_names: in class order; upper and lower case, spaces and underscores are alike.
        file: TOML, one line per superclass with its classes; None is CIFAR-100's table.

    Raises:
        DataError: the file cannot be read, or a class stands in none or two of the superclasses.
    """
    where = "the superclasses of CIFAR-100" if file is None else str(file)
    table = read_table("superclasses/cifar100.toml") if file is None else _read(file)
    found: dict[str, int] = {}
    for number, (name, members) in enumerate(table.items()):
        for member in members:
            if class_key(member) in found:
                raise DataError(f"{where}: class '{member}' of '{name}' stands there twice")
            found[class_key(member)] = number
    missing = [name for name in class_names if class_key(name) not in found]
    if missing:
        shown = ", ".join(f"'{name}'" for name in missing[:5])
        own = "name a table of your own with --superclasses FILE.toml"
        advice = "add them to it" if file else own
        raise DataError(
            f"partition 'pachinko' needs the superclass of every class, but {where} lack"
            f"{'s' if file else ''} {len(missing)} of {len(class_names)}: {shown}; {advice}"
        )
    return tuple(found[class_key(name)] for name in class_names)


def _read(file: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"superclasses {file}: {error.strerror}; {_FORM}") from error
    except ValueError as error:
        raise DataError(f"superclasses {file}: not TOML ({error}); {_FORM}") from error
    for name, members in table.items():
        if not isinstance(members, list) or not all(isinstance(m, str) for m in members):
            raise DataError(f"superclasses {file}: '{name}' is no list of class names; {_FORM}")
    return table
