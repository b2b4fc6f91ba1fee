"""Federations: protocols, shots, parts set aside, records, and regressions of known defects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pfedmma_deploy.data.clients_file import federation_from_dict, federation_to_dict
from pfedmma_deploy.data.datasets import load_dataset
from pfedmma_deploy.data.federation import (
    build_client,
    split_base_novel,
)
from pfedmma_deploy.data.partition import carve_splits, carved_sizes
from pfedmma_deploy.errors import DataError, UsageError
from pfedmma_deploy.types import Dataset, Example, Federation, Skipped, Split
from tests.data.toy import partitioned


@dataclass(eq=False)
class Toy(Dataset):
    """A data set without pixels; keys repeat label, split, client and domain."""

    class_names: tuple[str, ...]
    examples: tuple[Example, ...]
    name: str = "toy"
    skipped: tuple[Skipped, ...] = ()

    def open_image(self, example: Example) -> Image.Image:
        return Image.new("RGB", (2, 2), (example.label, 0, 0))


def toy(
    classes: int = 6,
    sizes: dict[Split, int] | None = None,
    clients: tuple[str | None, ...] = (None,),
    domains: tuple[str | None, ...] = (None,),
) -> Toy:
    sizes = {"train": 20, "val": 4, "test": 10} if sizes is None else sizes
    examples = [
        Example(f"{client}/{domain}/{split}/{label}/{number}.png", label, split, client, domain)
        for client in clients
        for domain in domains
        for split, size in sizes.items()
        for label in range(classes)
        for number in range(size)
    ]
    return Toy(tuple(f"class {letter}" for letter in "abcdefghijklmnop"[:classes]), tuple(examples))


def build(dataset: Toy, **options: Any) -> Federation:
    values: dict[str, Any] = {"clients": 3, "partition": "disjoint", "num_shots": 4, "seed": 0}
    return partitioned(dataset, **(values | options))


def per_class(examples: tuple[Example, ...]) -> dict[int, int]:
    return dict(Counter(example.label for example in examples))


def all_train(federation: Federation) -> list[str]:
    return [example.key for client in federation.clients for example in client.train]


@pytest.mark.parametrize(("classes", "base"), [(2, 1), (5, 3), (10, 5), (11, 6)])
def test_base_is_the_first_half_in_class_order(classes: int, base: int) -> None:
    assert split_base_novel(classes, "base-novel") == (
        tuple(range(base)),
        tuple(range(base, classes)),
    )
    assert split_base_novel(classes, "all") == (tuple(range(classes)), ())


def test_disjoint_by_hand() -> None:
    federation = build(toy())
    assert federation.base == (0, 1, 2)
    assert federation.novel == (3, 4, 5)
    assert [client.id for client in federation.clients] == ["0", "1", "2"]
    assert sorted(client.classes for client in federation.clients) == [(0,), (1,), (2,)]
    for client in federation.clients:
        (label,) = client.classes
        assert per_class(client.train) == {label: 4}
        assert per_class(client.val) == {label: 4}
        assert per_class(client.test) == {label: 10}
    assert per_class(federation.base_test) == {0: 10, 1: 10, 2: 10}
    assert per_class(federation.novel_test) == {3: 10, 4: 10, 5: 10}
    assert federation.names(federation.novel) == ["class d", "class e", "class f"]


PROTOCOLS = st.sampled_from(["disjoint", "dirichlet", "domain", "folders"])


@settings(deadline=None)
@given(PROTOCOLS, st.sampled_from(["base-novel", "all"]), st.integers(0, 6), st.integers(0, 2**63))
def test_every_image_is_used_once_and_novel_classes_never(
    partition: str, classes: str, num_shots: int, seed: int
) -> None:
    data = toy(6, {"train": 12, "test": 4}, clients=("north", "south"), domains=("ink", "photo"))
    federation = build(
        data,
        clients=2,
        classes=classes,
        partition=partition,
        num_shots=num_shots,
        seed=seed,
        dirichlet_beta=1.0,
    )
    keys = [e.key for c in federation.clients for e in (*c.train, *c.val, *c.test)]
    assert len(keys) == len(set(keys))
    assert not set(federation.base) & set(federation.novel)
    tests = [e.key for e in (*federation.base_test, *federation.novel_test)]
    assert sorted(tests) == sorted(e.key for e in data.examples if e.split == "test")
    trained = {e.label for c in federation.clients for e in (*c.train, *c.val, *c.test)}
    assert trained == set(federation.base)
    for client in federation.clients:
        assert client.train
        assert client.classes == tuple(sorted({e.label for e in client.train}))
        assert {e.label for e in (*client.val, *client.test)} <= set(client.classes)
    if num_shots == 0:
        used = [e.key for c in federation.clients for e in (*c.train, *c.val)]
        of_base = [e for e in data.examples if e.label in federation.base and e.split == "train"]
        assert sorted(used) == sorted(e.key for e in of_base)


@pytest.mark.parametrize(
    ("partition", "clients", "expected"),
    [("disjoint", 3, 3 * 4), ("dirichlet", 3, 3 * 4), ("domain", 4, 2 * 3 * 4), ("folders", 9, 24)],
)
def test_shots_are_counted_as_documented(partition: str, clients: int, expected: int) -> None:
    data = toy(clients=("north", "south"), domains=("ink", "photo"))
    federation = build(data, partition=partition, clients=clients, dirichlet_beta=10.0)
    assert len(all_train(federation)) == expected


def test_labels_stay_with_their_images() -> None:
    # Elsewhere labels were subset by an index map and paths were not.
    data = toy(8, clients=("north", "south"), domains=("ink", "photo"))
    for partition in ("disjoint", "dirichlet", "domain", "folders"):
        federation = build(data, clients=2, partition=partition, dirichlet_beta=1.0)
        for client in federation.clients:
            for example in (*client.train, *client.val, *client.test):
                folder, domain, _, label, _ = example.key.split("/")
                assert (int(label), domain) == (example.label, example.domain)
                assert folder == (client.id if partition == "folders" else example.client)
                if partition == "domain":
                    assert client.domain == domain


def test_no_client_is_dropped() -> None:
    for clients in range(1, 8):
        federation = build(toy(16), clients=clients)
        assert len(federation.clients) == clients
        assert sorted(c for client in federation.clients for c in client.classes) == [*range(8)]
        federation = build(toy(16), clients=clients, partition="dirichlet", num_shots=0)
        assert [client.id for client in federation.clients] == [str(n) for n in range(clients)]


def test_the_seed_decides_and_is_honoured() -> None:
    def keys(seed: int, partition: str) -> str:
        return json.dumps(federation_to_dict(build(toy(10), seed=seed, partition=partition)))

    for partition in ("disjoint", "dirichlet"):
        assert keys(5, partition) == keys(5, partition)
        assert len({keys(seed, partition) for seed in range(6)}) == 6


def test_domains_are_divided_apart() -> None:
    data = toy(clients=("x",), domains=("photo", "ink"))
    federation = build(data, partition="domain", clients=4, dirichlet_beta=5.0, num_shots=0)
    assert [client.id for client in federation.clients] == ["ink-0", "ink-1", "photo-0", "photo-1"]
    assert [client.domain for client in federation.clients] == ["ink", "ink", "photo", "photo"]


def test_client_folders_count_as_domains_where_none_are_marked() -> None:
    federation = build(toy(clients=("art", "clip")), partition="domain", clients=2)
    assert [client.id for client in federation.clients] == ["art-0", "clip-0"]


@pytest.mark.parametrize(("clients", "nearest"), [(1, 3), (4, 3), (5, 6), (10, 9), (11, 12)])
def test_clients_that_do_not_fit_the_domains(clients: int, nearest: int) -> None:
    with pytest.raises(DataError) as caught:
        build(toy(domains=("a", "b", "c")), partition="domain", clients=clients)
    assert str(caught.value) == (
        f"partition 'domain' gives every domain equally many clients, but {clients} clients cannot"
        f" be shared out evenly among 3 domains: use --clients {nearest}"
    )


def test_a_domain_that_is_too_small_is_named() -> None:
    data = toy(clients=("art", "clip"))
    kept = [e for e in data.examples if e.client == "art" or e.label == 0]
    with pytest.raises(DataError) as caught:
        build(Toy(data.class_names, tuple(kept)), partition="domain", clients=10)
    assert str(caught.value).startswith(
        "domain 'clip': partition 'dirichlet' could not give each of 5 clients at least 1 of 4"
        " training images"
    )


def test_folders_keep_their_names_in_natural_order() -> None:
    data = toy(clients=("site-10", "site-9", "lab"))
    federation = build(data, partition="folders")
    assert [client.id for client in federation.clients] == ["lab", "site-9", "site-10"]


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        (
            "folders",
            "partition 'folders' needs one folder per client, <client>/<class>/*.jpg; in toy,"
            " None/None/train/0/0.png belongs to none: use --partition disjoint or dirichlet",
        ),
        (
            "domain",
            "partition 'domain' needs images marked with a domain, or one folder per domain,"
            " <domain>/<class>/*.jpg; in toy, None/None/train/0/0.png belongs to none: use"
            " --partition disjoint, dirichlet or folders",
        ),
    ],
)
def test_partitions_that_the_data_do_not_allow(partition: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        build(toy(), partition=partition)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clients": 0}, "clients must be a whole number of 1 or more, not 0"),
        ({"num_shots": -1}, "shots must be 0 (all images) or more images per class, not -1"),
        ({"dirichlet_beta": 0.0}, "dirichlet_beta must be between 0.001 and 1000000, not 0.0"),
        ({"dirichlet_beta": float("nan")}, "dirichlet_beta must be between"),
        ({"seed": -1}, "seed must be 0 or more, not -1"),
        ({"classes": "some"}, "classes must be base-novel or all, not 'some'"),
        ({"partition": "iid"}, "partition must be disjoint, dirichlet, pachinko, domain, "),
    ],
)
def test_values_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(toy(), **options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("images", "sizes"),
    [(1, (0, 0)), (2, (1, 0)), (4, (1, 0)), (5, (1, 1)), (20, (4, 2)), (100, (20, 10))],
)
def test_sizes_of_parts_set_aside(images: int, sizes: tuple[int, int]) -> None:
    assert carved_sizes(images, test=True, val=True) == sizes
    assert carved_sizes(images, test=False, val=True) == (0, sizes[1])
    assert carved_sizes(images, test=False, val=False) == (0, 0)


def test_only_missing_parts_are_set_aside() -> None:
    federation = build(toy(sizes={"train": 20, "test": 3}), num_shots=0)
    for client in federation.clients:
        assert (len(client.train), len(client.val), len(client.test)) == (18, 2, 3)
        assert {example.split for example in client.val} == {"val"}
    untouched = toy()
    assert build(untouched, num_shots=0).clients[0].train[0] in untouched.examples


def test_parts_are_set_aside_for_each_client_folder() -> None:
    whole = toy(4, clients=("a", "b"))
    examples = [e for e in whole.examples if e.client == "a" or e.split == "train"]
    federation = build(Toy(whole.class_names, tuple(examples)), partition="folders", num_shots=0)
    a, b = federation.clients
    assert (len(a.train), len(a.val), len(a.test)) == (40, 8, 20)
    assert (len(b.train), len(b.val), len(b.test)) == (28, 4, 8)
    assert len(federation.novel_test) == 2 * 10 + 2 * 4


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), max_size=80), st.integers(0, 2**32))
def test_carving_keeps_every_image(labels: list[int], seed: int) -> None:
    examples = [Example(str(n), label, "train") for n, label in enumerate(labels)]
    carved, small = carve_splits(examples, np.random.default_rng(seed))
    assert [(e.key, e.label) for e in carved] == [(e.key, e.label) for e in examples]
    for label in set(labels):
        splits = Counter(e.split for e in carved if e.label == label)
        assert splits["train"] >= 1
        assert (label in small) == (labels.count(label) < 5) == (splits["val"] == 0)


def test_records_rebuild_the_federation_exactly() -> None:
    data = toy(8, {"train": 9}, clients=("a", "b"), domains=("ink", "photo"))
    for partition in ("disjoint", "dirichlet", "domain", "folders"):
        federation = build(data, clients=2, partition=partition, dirichlet_beta=1.0, num_shots=0)
        record = json.loads(json.dumps(federation_to_dict(federation)))
        assert federation_from_dict(data, record) == federation


def test_a_record_names_what_changed() -> None:
    data = toy()
    record = federation_to_dict(build(data))
    (keys, *_) = record["clients"][1]["train"].values()
    lost = keys[2]
    fewer = Toy(data.class_names, tuple(e for e in data.examples if e.key != lost))
    with pytest.raises(DataError) as caught:
        federation_from_dict(fewer, record)
    assert str(caught.value) == (
        f"data toy changed since the run: image {lost} is missing (1 of 84 are). Bring the images"
        " back, or start a new run on the data as they are"
    )
    swapped = Toy(("class a", "class c", "class b", *data.class_names[3:]), data.examples)
    with pytest.raises(DataError, match="class 1 was 'class b' and is 'class c' "):
        federation_from_dict(swapped, record)
    more = Toy((*data.class_names, "zebra"), data.examples)
    with pytest.raises(DataError, match=r"class 6 was nothing and is 'zebra' \(6 classes then, 7"):
        federation_from_dict(more, record)
    moved = [replace(e, label=5) if e.key == lost else e for e in data.examples]
    with pytest.raises(DataError, match=f"image {lost} belongs to another class now"):
        federation_from_dict(Toy(data.class_names, tuple(moved)), record)
    with pytest.raises(DataError, match="has format 9, expected 'pfedmma-clients'"):
        federation_from_dict(data, record | {"format": 9})


def test_one_client_holds_a_whole_data_set() -> None:
    client, warnings = build_client(toy(1, {"train": 10}), client_id="new")
    assert (client.id, client.classes) == ("new", (0,))
    assert (len(client.train), len(client.val), len(client.test)) == (7, 1, 2)
    assert warnings[0].startswith("clients with one class only (1): new (class a). They are train")
    few, _ = build_client(toy(3), client_id="new", num_shots=2)
    assert per_class(few.train) == {0: 2, 1: 2, 2: 2}
    with pytest.raises(DataError, match="classes to train on without a training image"):
        build_client(toy(2, {"test": 4}), client_id="new")


def test_the_quickstart_federation() -> None:
    data = load_dataset("cifar10-sample")
    federation = partitioned(
        data, clients=10, partition="dirichlet", dirichlet_beta=0.3, num_shots=100, seed=0
    )
    assert federation.names(federation.base) == list(data.class_names[:5])
    assert len(all_train(federation)) == len(set(all_train(federation))) == 500
    assert (len(federation.base_test), len(federation.novel_test)) == (500, 500)
    for client in federation.clients:
        assert len(client.train) >= 10
        assert client.val
        assert client.test


PROGRAM = """
import json, sys
from pfedmma_deploy.data.datasets import load_dataset
from pfedmma_deploy.data.clients_file import federation_to_dict
from tests.data.toy import partitioned
data = load_dataset(sys.argv[1])
federation = partitioned(data, clients=2, partition="dirichlet", dirichlet_beta=1.0, seed=3)
print(json.dumps(federation_to_dict(federation)))
assert "torch" not in sys.modules
"""


def test_class_order_does_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    for name in ("zebra", "ant", "Yak", "bee", "owl", "cat"):
        (tmp_path / name).mkdir()
        for number in range(8):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / name / f"{number}.png")
    outputs = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    names = json.loads(outputs[0])["data"]["class_names"]
    assert names == ["Yak", "ant", "bee", "cat", "owl", "zebra"]
