"""A data set partitioned among clients: the protocols of federated few-shot learning.

The order of events is fixed, and all of them draw from one generator made from the run's seed
(with `folders` from one per client): splits that the data lack are set aside, shots are drawn,
images are dealt out.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, get_args

import numpy as np

from pfedmma_deploy.config import Classes, PartitionConfig, Scheme
from pfedmma_deploy.data.clients_file import read_clients
from pfedmma_deploy.data.dataset_checks import (
    check_dataset,
    check_federation,
    find_problem,
    require_usable,
)
from pfedmma_deploy.data.datasets import SiteDataset
from pfedmma_deploy.data.pachinko import pachinko, read_superclasses
from pfedmma_deploy.data.partition import (
    Labels,
    carve_splits,
    dirichlet,
    disjoint,
    draw_shots,
)
from pfedmma_deploy.errors import DataError, UsageError, nearest
from pfedmma_deploy.types import ClientData, Dataset, Example, Federation, Problem, Split

# Keeps this stream apart from those of rounds and clients, which start from [seed, round, client].
_STREAM: Final = 0xDA7A

_BY_DOMAIN: Final = ("domain", "leave-one-domain-out")

_OF_ALL_SITES: Final = ("no-training-images", "few-shots", "class-without-test")
"""Problems that only all sites together can have."""

BySplit = dict[Split, list[Example]]


def build_federation(dataset: Dataset, partition: PartitionConfig, *, seed: int = 0) -> Federation:
    """Partitions `dataset` among clients.

    Base and novel classes: with `classes="base-novel"` the first ceil(C/2) classes in class order
    are base, and nobody trains on the rest; with `"all"` every class is base. The schemes say who
    gets the base classes:

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
    images, these are set aside from the training images first (`partition.carved_sizes`).

    A client's `classes` are those it has training images of, and its validation and test images
    are of these classes only. `base_test` and `novel_test` hold every test image, except those of
    the unseen domain in `base_test` and of the others in `novel_test`.

    Raises:
        UsageError: an `unseen_domain` that the data do not have, or a negative seed.
        DataError: fatal problems (`dataset_checks.problem_kinds`), a partition that the data do not
            allow, or a clients file that does not fit them.
    """
    problems = require_usable(check_dataset(dataset))
    federation, found = partition_dataset(dataset, partition, seed)
    warnings = (*problems, *require_usable(found))
    return replace(federation, warnings=tuple(map(str, warnings)))


def build_site(dataset: SiteDataset, partition: PartitionConfig, *, seed: int = 0) -> Federation:
    """The part of a federation of `folders` that one site can make of its own images.

    Its one client has the images that `build_federation` gives it of the folders of all sites. What
    the federation's classes lack here, other sites may have, so that is no problem.

    Raises:
        DataError: fatal problems of the site's own images.
    """
    problems = require_usable(check_dataset(dataset))
    federation, found = partition_dataset(dataset, partition, seed)
    own = require_usable(each for each in found if each.kind not in _OF_ALL_SITES)
    return replace(federation, warnings=tuple(map(str, (*problems, *own))))


def partition_dataset(
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
    groups = _group_examples(dataset, partition.scheme)
    unseen: tuple[Example, ...] = ()
    if partition.scheme == "leave-one-domain-out":
        unseen, novel = _take_unseen(groups, partition.unseen_domain), novel or base
    num_clients, uneven = divmod(partition.clients, len(groups))
    if uneven and partition.scheme != "folders":
        multiple = max(1, math.floor(partition.clients / len(groups) + 0.5)) * len(groups)
        raise DataError(
            f"partition '{partition.scheme}' gives every domain equally many clients, but"
            f" {partition.clients} clients cannot be shared out evenly among {len(groups)} domains:"
            f" use --clients {multiple}"
        )
    few: list[str] = []
    clients: list[ClientData] = []
    tests: list[Example] = []
    # Each group by itself: a domain keeps the splits that it has, whatever others lack.
    for name, group in groups.items():
        if partition.scheme == "folders":
            # Of its own, so that a site finds the same division without the others' images.
            rng = np.random.default_rng([seed, _STREAM, zlib.crc32(name.encode())])
        examples, small = carve_splits(group, rng)
        for label in small:
            if label in base:
                few.append(": ".join(filter(None, (name, dataset.class_names[label]))))
        tests += [example for example in examples if example.split == "test"]
        drawn = _draw_images(examples, base, partition.num_shots, rng)
        clients += _partition_group(dataset, name, drawn, num_clients, partition, base, rng)
    # By key and not by group, as they come back when a run is opened again.
    places = {example.key: place for place, example in enumerate(dataset.examples)}
    tests.sort(key=lambda example: places[example.key])
    federation = Federation(
        dataset=dataset,
        base=base,
        novel=novel,
        clients=tuple(clients),
        base_test=_of_labels(tests, base),
        novel_test=_of_labels(unseen or tests, novel),
        unseen_domain=partition.unseen_domain,
    )
    problems = check_federation(federation, partition.num_shots)
    return federation, (*find_problem("few-images", few), *problems)


def build_client(
    dataset: Dataset, *, client_id: str, num_shots: int = 0, seed: int = 0
) -> tuple[ClientData, tuple[str, ...]]:
    """One client that holds all of a data set, as one that joins a finished run does.

    Splits are set aside and shots drawn as for `folders` in `build_federation`, of every class; a
    single class is enough, since a run has other class names to tell it from.

    Returns:
        The client, with labels of `dataset`, and the warnings.

    Raises:
        DataError: fatal problems of the data set (`dataset_checks.problem_kinds`).
    """
    problems = [problem for problem in check_dataset(dataset) if problem.kind != "one-class"]
    federation, found = hold_all(dataset, client_id, num_shots, seed)
    (client,) = federation.clients
    return client, tuple(map(str, require_usable([*problems, *found])))


def hold_all(
    dataset: Dataset, client_id: str = "all", num_shots: int = 0, seed: int = 0
) -> tuple[Federation, tuple[Problem, ...]]:
    """The federation of `build_client`'s one client, and what is wrong with it, fatal or not."""
    rng = np.random.default_rng([seed, _STREAM])
    labels = tuple(range(len(dataset.class_names)))
    examples, few = carve_splits(dataset.examples, rng)
    client = _make_client(client_id, _draw_images(examples, labels, num_shots, rng))
    tests = tuple(example for example in examples if example.split == "test")
    federation = Federation(dataset, labels, (), (client,), tests, ())
    small = find_problem("few-images", [dataset.class_names[label] for label in few])
    return federation, (*small, *check_federation(federation, num_shots))


def split_base_novel(num_classes: int, classes: Classes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(base, novel) labels: the first ceil(C/2) in class order and the rest, or all and none."""
    cut = math.ceil(num_classes / 2) if classes == "base-novel" else num_classes
    return tuple(range(cut)), tuple(range(cut, num_classes))


def _group_examples(dataset: Dataset, scheme: Scheme) -> dict[str, list[Example]]:
    """The images that are partitioned together, by name of the group ("" where it is all of them).

    Groups stand in natural order of their names: site-2 before site-10.
    """
    if scheme in ("disjoint", "dirichlet", "pachinko"):
        return {"": list(dataset.examples)}
    groups: dict[str, list[Example]] = {}
    for example in dataset.examples:
        name = example.client
        if scheme in _BY_DOMAIN:
            name = example.domain or example.client
        if name is None:
            expected = (
                "images marked with a domain, or one folder per domain, <domain>/<class>/*.jpg"
            )
            others = "--partition disjoint, dirichlet or folders"
            if scheme == "folders":
                expected = "one folder per client, <client>/<class>/*.jpg"
                others = "--partition disjoint or dirichlet"
            raise DataError(
                f"partition '{scheme}' needs {expected}; in {dataset.name}, {example.key} belongs"
                f" to none: use {others}"
            )
        groups.setdefault(name, []).append(example)
    return {name: groups[name] for name in sorted(groups, key=_natural)}


def _take_unseen(
    groups: dict[str, list[Example]], unseen_domain: str | None
) -> tuple[Example, ...]:
    """Takes the domain that nobody trains on out of `groups` and returns its test images.

    These are all of its images where none is marked as a test image: nothing needs to be set aside
    for training.
    """
    known = ", ".join(groups)
    if unseen_domain is None:
        raise UsageError(
            "partition 'leave-one-domain-out' needs the domain that nobody trains on: use"
            f" --unseen-domain with one of {known}"
        )
    if unseen_domain not in groups:
        raise UsageError(
            f"there is no domain '{unseen_domain}'{nearest(unseen_domain, groups)}; the domains are"
            f" {known}"
        )
    if len(groups) == 1:
        raise DataError(
            f"partition 'leave-one-domain-out' leaves nothing to train on: '{unseen_domain}' is the"
            " only domain. Use another partition"
        )
    images = groups.pop(unseen_domain)
    tests = [example for example in images if example.split == "test"]
    return tuple(tests or (replace(example, split="test") for example in images))


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorts site-2 before site-10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(int(p), "") if p[0] in "0123456789" else (-1, p) for p in parts], name


def _draw_images(
    examples: Sequence[Example], labels: Sequence[int], num_shots: int, rng: np.random.Generator
) -> BySplit:
    """The images of these labels by split, `num_shots` of each class for training (0: all)."""
    drawn: BySplit = {split: [] for split in get_args(Split)}
    for example in _of_labels(examples, labels):
        drawn[example.split].append(example)
    shots = draw_shots(_labels_of(drawn["train"]), num_shots, rng)
    drawn["train"] = [drawn["train"][index] for index in shots]
    return drawn


def _partition_group(
    dataset: Dataset,
    group: str,
    drawn: BySplit,
    clients: int,
    partition: PartitionConfig,
    base: Sequence[int],
    rng: np.random.Generator,
) -> list[ClientData]:
    """The clients that share the images of one group."""
    labels: Labels = {split: _labels_of(of_split) for split, of_split in drawn.items()}
    beta = partition.dirichlet_beta
    match partition.scheme:
        case "folders":
            return [_make_client(group, drawn)]
        case "disjoint":
            shares = disjoint(labels, base, clients, rng)
        case "pachinko":
            file = partition.superclasses
            superclasses = read_superclasses(dataset.class_names, Path(file) if file else None)
            shares = pachinko(labels, superclasses, clients, beta, rng)
        case _:
            try:
                shares = dirichlet(labels, clients, beta, rng)
            except DataError as error:
                raise DataError(f"domain '{group}': {error}" if group else str(error)) from error
    # A client's id is its number, behind the group's name where there is one.
    made = []
    for number, share in enumerate(shares):
        held = {split: [drawn[split][index] for index in share[split]] for split in drawn}
        client = _make_client(f"{group}-{number}" if group else str(number), held)
        made.append(replace(client, domain=group) if group else client)
    return made


def _make_client(client_id: str, held: Mapping[Split, Sequence[Example]]) -> ClientData:
    """A client of these images; those to validate and test on are of classes it trains on."""
    classes = tuple(sorted({example.label for example in held["train"]}))
    domains = {example.domain for examples in held.values() for example in examples}
    return ClientData(
        id=client_id,
        classes=classes,
        train=tuple(held["train"]),
        # What it never saw in training would count as its own in local accuracy.
        val=_of_labels(held["val"], classes),
        test=_of_labels(held["test"], classes),
        domain=domains.pop() if len(domains) == 1 else None,
    )


def _labels_of(examples: Sequence[Example]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Labels [n]."""
    return np.array([example.label for example in examples], dtype=np.int64)


def _of_labels(examples: Iterable[Example], labels: Sequence[int]) -> tuple[Example, ...]:
    """Those of the given labels, in their order."""
    wanted = set(labels)
    return tuple(example for example in examples if example.label in wanted)
