"""Divisions among clients: nothing lost or doubled, the seed decides, no endless loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pfedmma_deploy.data.partition import (
    Labels,
    Share,
    apportion,
    dirichlet,
    disjoint,
    draw_shots,
    split_classes,
)
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Split

SEEDS = st.integers(0, 2**32)


def balanced(num_classes: int, train: int, val: int = 0, test: int = 0) -> Labels:
    sizes: dict[Split, int] = {"train": train, "val": val, "test": test}
    return {split: np.repeat(np.arange(num_classes), size) for split, size in sizes.items()}


def flat(parts: tuple[Share, ...], split: Split) -> list[int]:
    return sorted(int(index) for part in parts for index in part[split])


def table(
    labels: Labels, parts: tuple[Share, ...], split: Split, classes: int
) -> NDArray[np.int64]:
    """Images [clients, classes]."""
    return np.stack([np.bincount(labels[split][p[split]], minlength=classes) for p in parts])


def test_apportion_by_hand() -> None:
    # 10 * (.5, .3, .2) = (5, 3, 2); 7 * (.5, .25, .25) = (3.5, 1.75, 1.75): the two .75 round up.
    weights = np.array([[0.5, 0.3, 0.2], [0.5, 0.25, 0.25]])
    assert apportion(np.array([10, 7]), weights).tolist() == [[5, 3, 2], [3, 2, 2]]
    # Of equal remainders the first; a weight of 0 gets nothing.
    assert apportion(np.array([2]), np.array([[1, 0, 1, 1]])).tolist() == [[1, 0, 1, 0]]


@settings(deadline=None)
@given(
    st.integers(0, 500),
    st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(lambda weights: sum(weights) > 0),
)
def test_apportion_loses_nothing_and_is_near(total: int, weights: list[int]) -> None:
    row = np.array([weights])
    (counts,) = apportion(np.array([total]), row)
    assert counts.sum() == total
    assert np.all(np.abs(counts - total * row[0] / row.sum()) < 1)
    assert np.all(counts[row[0] == 0] == 0)


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=60), st.integers(0, 6), SEEDS)
def test_shots_are_k_of_every_class(labels: list[int], num_shots: int, seed: int) -> None:
    array = np.array(labels, dtype=np.int64)
    drawn = draw_shots(array, num_shots, np.random.default_rng(seed))
    assert np.array_equal(drawn, np.unique(drawn))
    for label in set(labels):
        available = labels.count(label)
        expected = min(num_shots, available) if num_shots else available
        assert np.count_nonzero(array[drawn] == label) == expected


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), SEEDS)
def test_class_groups_are_complete_and_even(classes: int, clients: int, seed: int) -> None:
    if clients > classes:
        return
    groups = split_classes(range(classes), clients, np.random.default_rng(seed))
    assert len(groups) == clients
    assert sorted(label for group in groups for label in group) == list(range(classes))
    sizes = [len(group) for group in groups]
    assert max(sizes) - min(sizes) <= 1


def test_more_clients_than_classes_says_what_to_change() -> None:
    # k = round(5 / 10) = 0 classes per client, elsewhere silently.
    with pytest.raises(DataError) as caught:
        split_classes(range(5), 10, np.random.default_rng(0))
    assert str(caught.value) == (
        "partition 'disjoint' gives every client classes of its own, but there are 10 clients and"
        " 5 classes to train on: use --clients 5 or fewer, --partition dirichlet, or --classes all"
    )


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6), SEEDS)
def test_disjoint_deals_every_image_once(
    classes: int, clients: int, per_class: int, seed: int
) -> None:
    if clients > classes:
        return
    labels = balanced(classes, per_class, 1, 2)
    parts = disjoint(labels, range(classes), clients, np.random.default_rng(seed))
    for split in labels:
        assert flat(parts, split) == list(range(len(labels[split])))
    owners = (table(labels, parts, "train", classes) > 0).sum(axis=0)
    assert owners.tolist() == [1] * classes
    assert np.array_equal(
        table(labels, parts, "train", classes) > 0, table(labels, parts, "test", classes) > 0
    )


@settings(deadline=None)
@given(
    st.lists(st.integers(8, 40), min_size=1, max_size=8),
    st.integers(1, 6),
    st.sampled_from([0.3, 1.0, 100.0]),
    SEEDS,
)
def test_dirichlet_deals_every_image_once(
    sizes: list[int], clients: int, beta: float, seed: int
) -> None:
    labels: Labels = {
        "train": np.repeat(np.arange(len(sizes)), sizes),
        "val": np.repeat(np.arange(len(sizes)), [max(1, size // 8) for size in sizes]),
        "test": np.repeat(np.arange(len(sizes)), [size // 3 for size in sizes]),
    }
    try:
        parts = dirichlet(labels, clients, beta, np.random.default_rng(seed), min_train=1)
    except DataError as error:
        assert "use fewer clients" in str(error)
        return
    assert len(parts) == clients
    for split in labels:
        assert flat(parts, split) == list(range(len(labels[split])))
    train = table(labels, parts, "train", len(sizes))
    assert train.sum(axis=1).min() >= 1
    # Nobody is tested on a class that it has no training image of.
    assert np.all(table(labels, parts, "test", len(sizes))[train == 0] == 0)


def test_test_images_follow_the_training_proportions() -> None:
    labels = balanced(5, train=100, val=20, test=100)
    parts = dirichlet(labels, 10, 0.3, np.random.default_rng(1))
    train, val, test = (table(labels, parts, split, 5) for split in ("train", "val", "test"))
    assert np.array_equal(train, test)
    assert np.all(np.abs(val - train / 5) < 1)
    assert min(split.sum(axis=1).min() for split in (val, test)) >= 1
    assert train.sum(axis=1).min() >= 10


def test_equal_sized_classes_get_different_proportions() -> None:
    # Seeding inside the loop over classes gives every class the same proportions: no skew at all.
    labels = balanced(6, train=200)
    counts = table(labels, dirichlet(labels, 5, 0.5, np.random.default_rng(0)), "train", 6).T
    assert len({tuple(row) for row in counts.tolist()}) == 6
    shares = counts / 200
    assert np.abs(shares[:, None] - shares[None]).max(axis=-1)[~np.eye(6, dtype=bool)].min() > 0.02


def test_the_seed_is_honoured() -> None:
    labels = balanced(4, train=50, test=10)

    def draw(seed: int) -> list[list[int]]:
        parts = dirichlet(labels, 4, 0.5, np.random.default_rng(seed))
        return [part["train"].tolist() for part in parts]

    assert draw(3) == draw(3)
    assert len({str(draw(seed)) for seed in range(8)}) == 8


def test_a_smaller_beta_is_more_skewed() -> None:
    labels = balanced(10, train=100)

    def largest_share(beta: float) -> float:
        parts = dirichlet(labels, 5, beta, np.random.default_rng(0))
        return float(table(labels, parts, "train", 10).max(axis=0).mean()) / 100

    shares = [largest_share(beta) for beta in (0.1, 1.0, 1000.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[2] == pytest.approx(0.2, abs=0.03)
    assert shares[0] > 0.6


@pytest.mark.parametrize("beta", [1e-3, 1e6])
def test_extreme_betas_end(beta: float) -> None:
    labels = balanced(40, train=20, test=5)
    try:
        parts = dirichlet(labels, 3, beta, np.random.default_rng(0))
    except DataError:
        return
    assert flat(parts, "train") == list(range(800))


def test_an_unreachable_minimum_is_an_error_not_a_loop() -> None:
    with pytest.raises(DataError) as caught:
        dirichlet(balanced(2, train=50), 10, 0.01, np.random.default_rng(0), min_train=9)
    assert str(caught.value) == (
        "partition 'dirichlet' could not give each of 10 clients at least 9 of 100 training"
        " images in 1,000 draws (beta 0.01): use fewer clients, more shots or images, or a larger"
        " --dirichlet-beta"
    )


def test_too_few_images_for_the_clients_are_refused_undrawn() -> None:
    with pytest.raises(DataError, match="each of 10 clients at least 1 of 5 training images "):
        dirichlet(balanced(5, train=1), 10, 0.3, np.random.default_rng(0))


def test_scarce_test_images_go_round_as_far_as_they_can() -> None:
    labels = balanced(4, train=50, val=0, test=1)
    parts = dirichlet(labels, 6, 10.0, np.random.default_rng(0))
    assert flat(parts, "test") == [0, 1, 2, 3]
    assert sum(len(part["test"]) > 0 for part in parts) == 4
