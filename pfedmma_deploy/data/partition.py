"""The steps of a partition, each a pure function: splits set aside, shots drawn, images dealt out.

Every function draws from the one `numpy.random.Generator` that it is given, so that a run's seed
decides everything. Those that deal take labels, and return indices into them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Example, Split

MAX_REDRAWS: Final = 1000
"""How often a Dirichlet partition is drawn before it counts as out of reach."""
MIN_IMAGES: Final = 5
"""Fewer images of a class than this are too few to set aside splits of both kinds."""
_TEST_SHARE: Final = 0.2
_VAL_SHARE: Final = 0.1

Indices = NDArray[np.int64]
Labels = Mapping[Split, NDArray[np.int64]]
"""Labels [n] of the images of each split."""
Share = dict[Split, Indices]
"""One client's images: ascending indices into the labels of each split."""


def carved_sizes(num_images: int, *, test: bool, val: bool) -> tuple[int, int]:
    """How many of a class's training images become (test, validation) images.

    From `MIN_IMAGES` on: 20 % for testing and 10 % for validation, rounded, at least one each.
    With two to four images: one for testing, none for validation. A single image trains. `test` and
    `val` say which split is missing.
    """
    if num_images < MIN_IMAGES:
        return (1 if test and num_images >= 2 else 0), 0
    of_test = max(1, round(num_images * _TEST_SHARE)) if test else 0
    of_val = max(1, round(num_images * _VAL_SHARE)) if val else 0
    return of_test, of_val


def carve_splits(
    examples: Sequence[Example], rng: np.random.Generator
) -> tuple[tuple[Example, ...], tuple[int, ...]]:
    """Sets aside a test or validation split, class by class, where no example has that split.

    Returns:
        The examples in the same order, each with the split that it now belongs to, and the
        labels of classes with fewer than `MIN_IMAGES` images to set some aside from.
    """
    splits = {example.split for example in examples}
    test, val = "test" not in splits, "val" not in splits
    if not (test or val):
        return tuple(examples), ()
    by_label: dict[int, list[int]] = {}
    for index, example in enumerate(examples):
        if example.split == "train":
            by_label.setdefault(example.label, []).append(index)
    carved = list(examples)
    small = []
    # By label: the order in which images are listed must not decide which are drawn.
    for label in sorted(by_label):
        shuffled = rng.permutation(by_label[label]).tolist()
        of_test, of_val = carved_sizes(len(shuffled), test=test, val=val)
        for index in shuffled[:of_test]:
            carved[index] = replace(examples[index], split="test")
        for index in shuffled[of_test : of_test + of_val]:
            carved[index] = replace(examples[index], split="val")
        if len(shuffled) < MIN_IMAGES:
            small.append(label)
    return tuple(carved), tuple(small)


def draw_shots(labels: NDArray[np.int64], num_shots: int, rng: np.random.Generator) -> Indices:
    """Draws `num_shots` images of every class, without replacement.

    Returns:
        Ascending indices into `labels` [n]. All of them where `num_shots` is 0; all of a class
        that has fewer.
    """
    if num_shots == 0:
        return np.arange(len(labels), dtype=np.int64)
    drawn = [np.empty(0, np.int64)]
    for label in np.unique(labels):
        drawn.append(rng.permutation(np.flatnonzero(labels == label))[:num_shots])
    return np.sort(np.concatenate(drawn))


def split_classes(
    classes: Sequence[int], clients: int, rng: np.random.Generator
) -> tuple[tuple[int, ...], ...]:
    """Shuffles classes and cuts them into one group per client; sizes differ by at most one.

    Raises `DataError` where there are more clients than classes.
    """
    if clients > len(classes):
        raise DataError(
            f"partition 'disjoint' gives every client classes of its own, but there are {clients}"
            f" clients and {len(classes)} classes to train on: use --clients {len(classes)} or"
            " fewer, --partition dirichlet, or --classes all"
        )
    shuffled = rng.permutation(np.asarray(classes, dtype=np.int64))
    return tuple(tuple(sorted(group.tolist())) for group in np.array_split(shuffled, clients))


def disjoint(
    labels: Labels, classes: Sequence[int], clients: int, rng: np.random.Generator
) -> tuple[Share, ...]:
    """Label shift: every class, with all its images, belongs to exactly one client."""
    shares = []
    for group in split_classes(classes, clients, rng):
        share: Share = {}
        for split, of_split in labels.items():
            share[split] = np.flatnonzero(np.isin(of_split, group))
        shares.append(share)
    return tuple(shares)


def dirichlet(
    labels: Labels,
    clients: int,
    beta: float,
    rng: np.random.Generator,
    *,
    min_train: int | None = None,
) -> tuple[Share, ...]:
    """Label skew: Dirichlet(beta) proportions over the clients, drawn anew for each class.

    The training images of a class are dealt out by its proportions, rounded so that none is lost
    (largest remainder); its validation and test images by the proportions that came out for
    training, so a client is tested on the classes that it has, as often as it has them.

    A draw is good where every client has `min_train` training images and at least one validation
    and one test image. Where `MAX_REDRAWS` draws are not, the one with the fewest clients lacking
    a validation or test image is taken, as long as all have their training images.

    Args:
        labels: labels of each split; "train" decides which classes are dealt out.
        clients: N.
        beta: concentration; small is skewed, large is even.
        rng: the only source of chance.
        min_train: default a fifth of an even share, rounded up, and at most 10.

    Raises:
        DataError: no draw gave every client its training images.
    """
    total = len(labels["train"])
    if min_train is None:
        min_train = min(10, max(1, -(-total // (5 * clients))))
    draws = MAX_REDRAWS if total >= clients * min_train else 0
    classes = np.unique(labels["train"])
    totals = {split: count_classes(of_split, classes) for split, of_split in labels.items()}
    # With fewer test images than clients some have none, however often it is drawn.
    unavoidable = sum(max(0, clients - int(total.sum())) for total in totals.values())
    best: dict[Split, Indices] | None = None
    fewest = len(totals) * clients + 1
    for _ in range(draws):
        train = apportion(totals["train"], rng.dirichlet(np.full(clients, beta), len(classes)))
        if train.sum(axis=0).min() < min_train:
            continue  # a client that hardly trains would be no client
        counts = {split: apportion(total, train) for split, total in totals.items()}
        lacking = sum(int(np.count_nonzero(n.sum(axis=0) == 0)) for n in counts.values())
        if lacking < fewest:
            best, fewest = counts, lacking
        if lacking <= unavoidable:
            break
    if best is None:
        tried = f" in {draws:,} draws" if draws else ""
        raise DataError(
            f"partition 'dirichlet' could not give each of {clients} clients at least {min_train}"
            f" of {total} training images{tried} (beta {beta:g}): use fewer clients, more shots or"
            " images, or a larger --dirichlet-beta"
        )
    return deal(labels, classes, best, rng)


def apportion(totals: Indices, weights: NDArray[np.float64] | NDArray[np.int64]) -> Indices:
    """Whole numbers [C, N] whose rows add up to `totals` [C], as near to `weights` as can be.

    Largest remainder; of equal remainders the first. `weights` [C, N] are non-negative, and every
    row has a positive sum; a weight of 0 gets nothing.
    """
    exact = totals[:, None] * (weights / weights.sum(axis=1, keepdims=True))
    counts: Indices = np.floor(exact).astype(np.int64)
    remainders = np.where(weights > 0, exact - counts, -1.0)
    order = np.argsort(-remainders, axis=1, kind="stable")
    ranks = np.argsort(order, axis=1, kind="stable")
    counts += ranks < (totals - counts.sum(axis=1))[:, None]
    return counts


def count_classes(labels: NDArray[np.int64], classes: NDArray[np.int64]) -> Indices:
    """How many of `labels` [n] are each of `classes` [C]."""
    return np.array([np.count_nonzero(labels == label) for label in classes], dtype=np.int64)


def deal(
    labels: Labels,
    classes: NDArray[np.int64],
    counts: Mapping[Split, Indices],
    rng: np.random.Generator,
) -> tuple[Share, ...]:
    """Shuffles the images of each class and hands them out by `counts` [C, N] of each split."""
    shares: tuple[Share, ...] = tuple({} for _ in range(counts["train"].shape[1]))
    for split, of_split in labels.items():
        # Whose each image is; of classes that are not dealt out, nobody's.
        owner = np.full(len(of_split), -1)
        for label, row in zip(classes, counts[split], strict=True):
            shuffled = rng.permutation(np.flatnonzero(of_split == label))
            owner[shuffled] = np.repeat(np.arange(len(shares)), row)
        for client, share in enumerate(shares):
            share[split] = np.flatnonzero(owner == client)
    return shares
