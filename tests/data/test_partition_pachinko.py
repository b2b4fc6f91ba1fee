"""Pachinko allocation: every image once, equal clients, superclasses that differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfedmma_deploy.config import Classes
from pfedmma_deploy.data.pachinko import draw_counts, pachinko, read_superclasses
from pfedmma_deploy.data.partition import Labels
from pfedmma_deploy.errors import DataError, UsageError
from tests.data.toy import held, make_toy, partitioned

# Fine classes in sorted order and the number of each one's superclass, superclasses sorted too, as
# in the data set's own files (fine_label_names, and coarse_labels of one image per class).
CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
""".split()
COARSE = [
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3,
    15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0,
    17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19,
    2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
]  # fmt: skip


def test_the_table_of_cifar100_is_that_of_its_files() -> None:
    assert len(CIFAR100) == len(COARSE) == 100
    assert list(read_superclasses(CIFAR100)) == COARSE
    assert list(read_superclasses([name.replace("_", " ") for name in CIFAR100])) == COARSE


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 20)), min_size=1, max_size=10),
    st.integers(1, 8),
    st.sampled_from([1e-3, 0.1, 1.0, 1e6]),
    st.integers(0, 2**32),
)
def test_every_image_is_drawn_once_and_clients_are_equal(
    classes: list[tuple[int, int]], clients: int, beta: float, seed: int
) -> None:
    totals = np.array([size for _, size in classes])
    groups = np.unique([group for group, _ in classes], return_inverse=True)[1]
    counts = draw_counts(totals, groups, clients, beta, np.random.default_rng(seed))
    assert counts.shape == (len(classes), clients)
    assert counts.min() >= 0
    assert counts.sum(axis=1).tolist() == totals.tolist()
    sizes = counts.sum(axis=0)
    assert sizes.max() - sizes.min() <= 1


def test_a_small_beta_gives_clients_superclasses_of_their_own() -> None:
    # 20 superclasses of 5 classes with 100 images; 20 clients with 500 images, as many as one has.
    groups = np.arange(100) // 5

    def largest_share(beta: float) -> float:
        counts = draw_counts(np.full(100, 100), groups, 20, beta, np.random.default_rng(0))
        of_groups = counts.reshape(20, 5, 20).sum(axis=1)
        return float((of_groups.max(axis=0) / 500).mean())

    assert largest_share(0.01) > 0.5 > largest_share(1.0) > largest_share(100.0)
    assert largest_share(1e6) == pytest.approx(1 / 20, abs=0.03)


def test_classes_within_a_superclass_stay_together() -> None:
    counts = draw_counts(np.full(100, 50), np.arange(100) // 5, 50, 0.05, np.random.default_rng(1))
    within = counts.reshape(20, 5, 50)
    held_groups = within.sum(axis=1) >= 30
    assert np.all((within > 0).sum(axis=1)[held_groups] >= 3)


def test_test_images_follow_training() -> None:
    labels: Labels = {
        "train": np.repeat(np.arange(10), 40),
        "val": np.repeat(np.arange(10), 4),
        "test": np.repeat(np.arange(10), 40),
    }
    parts = pachinko(labels, [c // 5 for c in range(10)], 8, 0.1, np.random.default_rng(0))
    for part in parts:
        train, test = (np.bincount(labels[s][part[s]], minlength=10) for s in ("train", "test"))
        assert np.array_equal(train, test)
        assert len(part["train"]) == 50


def test_more_clients_than_images() -> None:
    labels: Labels = {split: np.arange(3) for split in ("train", "val", "test")}
    with pytest.raises(DataError) as caught:
        pachinko(labels, [0, 0, 1], 4, 0.1, np.random.default_rng(0))
    assert str(caught.value) == (
        "partition 'pachinko' gives every client equally many training images, but there are 4"
        " clients and 3 images: use fewer clients, or more shots or images"
    )


def test_a_federation_of_cifar100() -> None:
    data = make_toy(tuple(CIFAR100), {"train": 20, "val": 2, "test": 4})
    protocols: tuple[tuple[Classes, int], ...] = (("all", 100), ("base-novel", 50))
    for classes, base in protocols:
        federation = partitioned(
            data, clients=20, classes=classes, partition="pachinko", dirichlet_beta=0.1, num_shots=0
        )
        assert {len(client.train) for client in federation.clients} == {base}
        keys = held(federation)
        assert len(keys) == len(set(keys))
        assert len(federation.base) == base
        assert not set(federation.base) & set(federation.novel)
        train = [e.key for c in federation.clients for e in c.train]
        assert sorted(train) == sorted(
            e.key for e in data.examples if e.split == "train" and e.label < base
        )


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "superclasses.toml"
    file.write_text('pets = ["Cat", "dog"]\n"farm animals" = ["ox", "sheep"]\n')
    assert read_superclasses(["cat", "ox", "Dog"], file) == (0, 1, 0)
    data = make_toy(("cat", "dog", "ox", "sheep"), {"train": 10, "val": 2, "test": 4})
    federation = partitioned(
        data, clients=2, classes="all", partition="pachinko", superclasses=str(file), num_shots=0
    )
    assert [len(client.train) for client in federation.clients] == [20, 20]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pets = [", "not TOML ("),
        ("pets = 3", "'pets' is no list of class names; expected lines like"),
        ('a = ["cat"]\nb = ["Cat"]', ": class 'Cat' of 'b' stands there twice"),
        ('a = ["dog"]', "lacks 1 of 1: 'cat'; add them to it"),
    ],
)
def test_tables_that_do_not_fit(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(text)
    with pytest.raises(DataError) as caught:
        read_superclasses(["cat"], file)
    assert str(file) in str(caught.value) and message in str(caught.value)


def test_other_data_need_a_table() -> None:
    data = make_toy(("cat", "ox", "zebu"), {"train": 10, "val": 1, "test": 4})
    with pytest.raises(DataError) as caught:
        partitioned(data, clients=2, classes="all", partition="pachinko")
    assert str(caught.value) == (
        "partition 'pachinko' needs the superclass of every class, but the superclasses of"
        " CIFAR-100 lack 3 of 3: 'cat', 'ox', 'zebu'; name a table of your own with --superclasses"
        " FILE.toml"
    )
    with pytest.raises(UsageError, match="--superclasses belongs to --partition pachinko, not to"):
        partitioned(data, clients=2, superclasses="x.toml")
    with pytest.raises(DataError, match=r"superclasses x\.toml: No such file or directory; expect"):
        partitioned(data, clients=2, partition="pachinko", superclasses="x.toml")
