"""A data set divided among clients: the protocols of federated few-shot learning.

The order of events is fixed, and all of them draw from one generator made from the run's seed:
parts that the data lack are set aside, shots are drawn, images are dealt out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, get_args

import numpy as np

from pfedmma_deploy.config import Classes, Partition
from pfedmma_deploy.data.checks import (
    check_dataset,
    check_federation,
    find_problem,
    require_usable,
)
from pfedmma_deploy.data.partition import Labels, Part, dirichlet, disjoint, draw_shots
from pfedmma_deploy.data.pools import clients_per_pool, make_pools
from pfedmma_deploy.data.records import federation_from_dict, federation_to_dict
from pfedmma_deploy.data.splits import carve_splits
from pfedmma_deploy.errors import DataError, UsageError
from pfedmma_deploy.types import ClientData, Dataset, Example, Federation, Split

__all__ = [
    "build_client",
    "build_federation",
    "federation_from_dict",
    "federation_to_dict",
    "split_base_novel",
]

# Keeps this stream apart from those of rounds and clients, which start from [seed, round, client].
_STREAM: Final = 0xDA7A


def build_federation(
    dataset: Dataset,
    *,
    clients: int,
    classes: Classes = "base-novel",
    partition: Partition = "disjoint",
    dirichlet_beta: float = 0.3,
    num_shots: int = 16,
    seed: int = 0,
) -> Federation:
    """Divides `dataset` among clients.

    Base and novel classes: with `classes="base-novel"` the first ceil(C/2) classes in class order
    are base; the rest is never trained on. With "all", every class is base.

    Partitions of the base classes:

    - `disjoint`: the shuffled classes are cut into one group per client, sizes differing by at
      most one; a client has all that is drawn of its classes.
    - `dirichlet`: every class is dealt out by its own Dirichlet(beta) proportions, alike for
      training, validation and testing (`partition.dirichlet` has the rule).
    - `domain`: as `dirichlet`, but inside every domain, clients / domains parts each; a client's
      id is `domain-part`. Where images carry no domain, their client folder counts as one.
    - `folders`: each client folder is a client; `clients` and `dirichlet_beta` do not count.

    Shots: K = `num_shots` training images of every base class are drawn, K per class from the whole
    data for `disjoint` and `dirichlet` (so K x base classes in the federation), K per class from
    every domain for `domain`, and K per class from every client for `folders`. 0 takes all, and a
    class with fewer than K gives what it has. Validation and test images are always used in full.

    Where the data, the domain or the client folder (as the shots) have no validation or no test
    images, these are set aside from the training images first (`splits.carved_sizes`).

    A client's `classes` are those it has training images of, and its validation and test images
    are of these classes only. `base_test` and `novel_test` hold every test image.

    Raises:
        UsageError: a value out of range.
        DataError: fatal problems (`checks.KINDS`), or a partition that the data do not allow.
    """
    _check_values(clients, classes, partition, dirichlet_beta, num_shots, seed)
    problems = [*require_usable(check_dataset(dataset))]
    rng = np.random.default_rng([seed, _STREAM])
    base, novel = split_base_novel(len(dataset.class_names), classes)
    pools = make_pools(dataset, partition)
    per_pool = clients_per_pool(clients, partition, len(pools))
    small: list[str] = []
    members: list[ClientData] = []
    tests: list[Example] = []
    for name, pool in pools.items():
        examples, few = carve_splits(pool, rng)
        named = [dataset.class_names[label] for label in few if label in base]
        small += [f"{name}: {each}" if name else each for each in named]
        tests += [example for example in examples if example.split == "test"]
        drawn = _draw(examples, base, num_shots, rng)
        labels: Labels = {split: _labels(of_split) for split, of_split in drawn.items()}
        if partition == "folders":
            members.append(_make_client(name, drawn))
        elif partition == "disjoint":
            members += _make_clients("", drawn, disjoint(labels, base, per_pool, rng))
        else:
            parts = _dirichlet_in(name, labels, per_pool, dirichlet_beta, rng)
            members += _make_clients(name, drawn, parts)
    federation = Federation(
        dataset=dataset,
        base=base,
        novel=novel,
        clients=tuple(members),
        base_test=_of_labels(tests, base),
        novel_test=_of_labels(tests, novel),
    )
    problems += find_problem("few-images", small)
    problems += check_federation(federation, num_shots)
    return replace(federation, warnings=tuple(map(str, require_usable(problems))))


def build_client(
    dataset: Dataset, *, client_id: str, num_shots: int = 0, seed: int = 0
) -> tuple[ClientData, tuple[str, ...]]:
    """One client that holds all of a data set, as one that joins a finished run does.

    Parts are set aside and shots drawn as for `folders` in `build_federation`, of every class; a
    single class is enough, since a run has other class names to tell it from.

    Returns:
        The client, with labels of `dataset`, and the warnings.

    Raises:
        DataError: fatal problems of the data set (`checks.KINDS`).
    """
    problems = [problem for problem in check_dataset(dataset) if problem.kind != "one-class"]
    rng = np.random.default_rng([seed, _STREAM])
    labels = tuple(range(len(dataset.class_names)))
    examples, few = carve_splits(dataset.examples, rng)
    client = _make_client(client_id, _draw(examples, labels, num_shots, rng))
    tests = _of_labels([example for example in examples if example.split == "test"], labels)
    whole = Federation(dataset, labels, (), (client,), tests, ())
    problems += find_problem("few-images", [dataset.class_names[label] for label in few])
    problems += check_federation(whole, num_shots)
    return client, tuple(map(str, require_usable(problems)))


def split_base_novel(num_classes: int, classes: Classes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(base, novel) labels: the first ceil(C/2) in class order and the rest, or all and none."""
    cut = math.ceil(num_classes / 2) if classes == "base-novel" else num_classes
    return tuple(range(cut)), tuple(range(cut, num_classes))


def _check_values(
    clients: int, classes: str, partition: str, beta: float, num_shots: int, seed: int
) -> None:
    checks = (
        ("classes", classes, classes in get_args(Classes), " or ".join(get_args(Classes))),
        ("partition", partition, partition in get_args(Partition), ", ".join(get_args(Partition))),
        ("clients", clients, clients >= 1, "1 or more"),
        ("num_shots", num_shots, num_shots >= 0, "0 (all images) or more"),
        ("seed", seed, seed >= 0, "0 or more"),
        # Far below this the proportions underflow.
        ("dirichlet_beta", beta, 1e-3 <= beta <= 1e6, "between 0.001 and 1000000"),
    )
    for name, value, good, expected in checks:
        if not good:
            raise UsageError(f"{name} must be {expected}, not {value!r}")


def _draw(
    examples: Sequence[Example], labels: Sequence[int], num_shots: int, rng: np.random.Generator
) -> dict[Split, list[Example]]:
    wanted = set(labels)
    drawn: dict[Split, list[Example]] = {split: [] for split in get_args(Split)}
    for example in examples:
        if example.label in wanted:
            drawn[example.split].append(example)
    shots = draw_shots(_labels(drawn["train"]), num_shots, rng)
    drawn["train"] = [drawn["train"][index] for index in shots]
    return drawn


def _dirichlet_in(
    pool: str, labels: Labels, clients: int, beta: float, rng: np.random.Generator
) -> tuple[Part, ...]:
    try:
        return dirichlet(labels, clients, beta, rng)
    except DataError as error:
        raise DataError(f"domain '{pool}': {error}" if pool else str(error)) from error


def _make_clients(
    pool: str, drawn: dict[Split, list[Example]], parts: Sequence[Part]
) -> list[ClientData]:
    clients = []
    for number, part in enumerate(parts):
        held = {split: [drawn[split][index] for index in part[split]] for split in drawn}
        client = _make_client(f"{pool}-{number}" if pool else str(number), held)
        clients.append(replace(client, domain=pool) if pool else client)
    return clients


def _make_client(client_id: str, held: dict[Split, list[Example]]) -> ClientData:
    classes = tuple(sorted({example.label for example in held["train"]}))
    domains = {example.domain for examples in held.values() for example in examples}
    return ClientData(
        id=client_id,
        classes=classes,
        train=tuple(held["train"]),
        val=_of_labels(held["val"], classes),
        test=_of_labels(held["test"], classes),
        domain=domains.pop() if len(domains) == 1 else None,
    )


def _labels(examples: Sequence[Example]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([example.label for example in examples], dtype=np.int64)


def _of_labels(examples: Sequence[Example], labels: Sequence[int]) -> tuple[Example, ...]:
    wanted = set(labels)
    return tuple(example for example in examples if example.label in wanted)
