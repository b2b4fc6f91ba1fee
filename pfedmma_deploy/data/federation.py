"""A data set divided among clients: the protocols of federated few-shot learning.

The order of events is fixed, and all of them draw from one generator made from the run's seed:
parts that the data lack are set aside, shots are drawn, images are dealt out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from pfedmma_deploy.config import Classes, PartitionConfig
from pfedmma_deploy.data.checks import (
    Problem,
    check_dataset,
    check_federation,
    find_problem,
    require_usable,
)
from pfedmma_deploy.data.clients_file import read_clients
from pfedmma_deploy.data.members import (
    draw_images,
    labels_of,
    make_client,
    make_clients,
    of_labels,
)
from pfedmma_deploy.data.pachinko import pachinko
from pfedmma_deploy.data.partition import Labels, Part, dirichlet, disjoint
from pfedmma_deploy.data.pools import clients_per_pool, make_pools, take_unseen
from pfedmma_deploy.data.records import federation_from_dict, federation_to_dict
from pfedmma_deploy.data.splits import carve_splits
from pfedmma_deploy.data.superclasses import read_superclasses
from pfedmma_deploy.errors import DataError, UsageError
from pfedmma_deploy.types import ClientData, Dataset, Example, Federation, Split

__all__ = [
    "build_client",
    "build_federation",
    "divide",
    "federation_from_dict",
    "federation_to_dict",
    "hold_all",
    "split_base_novel",
]

# Keeps this stream apart from those of rounds and clients, which start from [seed, round, client].
_STREAM: Final = 0xDA7A


def build_federation(dataset: Dataset, partition: PartitionConfig, *, seed: int = 0) -> Federation:
    """Divides `dataset` among clients.

    Base and novel classes: with `classes="base-novel"` the first ceil(C/2) classes in class order
    are base; the rest is never trained on. With "all", every class is base.

    Partitions of the base classes:

    - `disjoint`: the shuffled classes are cut into one group per client, sizes differing by at
      most one; a client has all that is drawn of its classes.
    - `dirichlet`: every class is dealt out by its own Dirichlet(beta) proportions, alike for
      training, validation and testing (`partition.dirichlet` has the rule).
    - `pachinko`: equally large clients, which differ in superclasses (`pachinko.pachinko`) of
      the table in the file `superclasses`, or of CIFAR-100.
    - `domain`: as `dirichlet`, but inside every domain, clients / domains parts each; a client's
      id is `domain-part`. Where images carry no domain, their client folder counts as one.
    - `leave-one-domain-out`: as `domain`, but without `unseen_domain`. Its test images (all of its
      images, if none is marked so) are `novel_test`: those of the novel classes or, with
      `classes="all"`, of every class; `novel` is then the same as `base`.
    - `folders`: each client folder is a client; `clients` and `dirichlet_beta` do not count.

    With a `clients_file`, that file decides all of it.

    Shots: K = `num_shots` training images of every base class are drawn, K per class from the whole
    data for `disjoint`, `dirichlet` and `pachinko` (so K x base classes in the federation), K per
    class from every domain for the partitions by domain, and K per class from every client for
    `folders`. 0 takes all, and a class with fewer than K gives what it has. Validation and test
    images are always used in full.

    Where the data, the domain or the client folder (as the shots) have no validation or no test
    images, these are set aside from the training images first (`splits.carved_sizes`).

    A client's `classes` are those it has training images of, and its validation and test images
    are of these classes only. `base_test` and `novel_test` hold every test image, except those of
    the unseen domain in `base_test` and of the others in `novel_test`.

    Raises:
        UsageError: a value out of range, or an `unseen_domain` that the data do not have.
        DataError: fatal problems (`checks.KINDS`), a partition that the data do not allow, or a
            clients file that does not fit them.
    """
    problems = require_usable(check_dataset(dataset))
    federation, found = divide(dataset, partition, seed)
    warnings = (*problems, *require_usable(found))
    return replace(federation, warnings=tuple(map(str, warnings)))


def divide(
    dataset: Dataset, partition: PartitionConfig, seed: int = 0
) -> tuple[Federation, tuple[Problem, ...]]:
    """A federation as `build_federation` makes it, and what is wrong with it, fatal or not.

    Raises:
        UsageError, DataError: the data do not allow this partition.
    """
    if partition.clients_file is not None:
        return read_clients(dataset, Path(partition.clients_file))
    if seed < 0:
        raise UsageError(f"seed must be 0 or more, not {seed}.")
    rng = np.random.default_rng([seed, _STREAM])
    base, novel = split_base_novel(len(dataset.class_names), partition.classes)
    pools = make_pools(dataset, partition.scheme)
    unseen: tuple[Example, ...] = ()
    if partition.scheme == "leave-one-domain-out":
        unseen, novel = take_unseen(pools, partition.unseen_domain), novel or base
    per_pool = clients_per_pool(partition.clients, partition.scheme, len(pools))
    small: list[str] = []
    members: list[ClientData] = []
    tests: list[Example] = []
    for name, pool in pools.items():
        examples, few = carve_splits(pool, rng)
        named = [dataset.class_names[label] for label in few if label in base]
        small += [f"{name}: {each}" if name else each for each in named]
        tests += [example for example in examples if example.split == "test"]
        drawn = draw_images(examples, base, partition.num_shots, rng)
        members += _divide_pool(dataset, name, drawn, per_pool, partition, base, rng)
    federation = Federation(
        dataset=dataset,
        base=base,
        novel=novel,
        clients=tuple(members),
        base_test=of_labels(tests, base),
        novel_test=of_labels(unseen or tests, novel),
        unseen_domain=partition.unseen_domain,
    )
    problems = check_federation(federation, partition.num_shots)
    return federation, (*find_problem("few-images", small), *problems)


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
    whole, found = hold_all(dataset, client_id, num_shots, seed)
    (client,) = whole.clients
    return client, tuple(map(str, require_usable([*problems, *found])))


def hold_all(
    dataset: Dataset, client_id: str = "all", num_shots: int = 0, seed: int = 0
) -> tuple[Federation, tuple[Problem, ...]]:
    """The federation of `build_client`'s one client, and what is wrong with it, fatal or not."""
    rng = np.random.default_rng([seed, _STREAM])
    labels = tuple(range(len(dataset.class_names)))
    examples, few = carve_splits(dataset.examples, rng)
    client = make_client(client_id, draw_images(examples, labels, num_shots, rng))
    tests = of_labels([example for example in examples if example.split == "test"], labels)
    whole = Federation(dataset, labels, (), (client,), tests, ())
    small = find_problem("few-images", [dataset.class_names[label] for label in few])
    return whole, (*small, *check_federation(whole, num_shots))


def split_base_novel(num_classes: int, classes: Classes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(base, novel) labels: the first ceil(C/2) in class order and the rest, or all and none."""
    cut = math.ceil(num_classes / 2) if classes == "base-novel" else num_classes
    return tuple(range(cut)), tuple(range(cut, num_classes))


def _divide_pool(
    dataset: Dataset,
    pool: str,
    drawn: dict[Split, list[Example]],
    clients: int,
    partition: PartitionConfig,
    base: Sequence[int],
    rng: np.random.Generator,
) -> list[ClientData]:
    labels: Labels = {split: labels_of(of_split) for split, of_split in drawn.items()}
    beta = partition.dirichlet_beta
    match partition.scheme:
        case "folders":
            return [make_client(pool, drawn)]
        case "disjoint":
            parts = disjoint(labels, base, clients, rng)
        case "pachinko":
            file = None if partition.superclasses is None else Path(partition.superclasses)
            groups = read_superclasses(dataset.class_names, file)
            parts = pachinko(labels, groups, clients, beta, rng)
        case _:
            parts = _dirichlet_in(pool, labels, clients, beta, rng)
    return make_clients(pool, drawn, parts)


def _dirichlet_in(
    pool: str, labels: Labels, clients: int, beta: float, rng: np.random.Generator
) -> tuple[Part, ...]:
    try:
        return dirichlet(labels, clients, beta, rng)
    except DataError as error:
        raise DataError(f"domain '{pool}': {error}" if pool else str(error)) from error
