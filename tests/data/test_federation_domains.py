"""A domain that nobody trains on, and divisions that do not depend on the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfedmma_deploy.errors import DataError, UsageError
from tests.data.toy import Toy, held, make_toy, partitioned

NAMES = ("ant", "bee", "cow", "dog", "elk")
DOMAINS = ("ink", "photo", "sketch")


def build(data: Toy, **options: Any) -> Any:
    values: dict[str, Any] = {
        "clients": 4,
        "partition": "leave-one-domain-out",
        "unseen_domain": "sketch",
        "dirichlet_beta": 5.0,
        "num_shots": 0,
    }
    return partitioned(data, **(values | options))


def test_all_classes_by_hand() -> None:
    federation = build(make_toy(NAMES, {"train": 20, "val": 4, "test": 6}, DOMAINS), classes="all")
    assert [client.id for client in federation.clients] == ["ink-0", "ink-1", "photo-0", "photo-1"]
    assert federation.unseen_domain == "sketch"
    assert federation.base == federation.novel == (0, 1, 2, 3, 4)
    assert {e.domain for e in federation.base_test} == {"ink", "photo"}
    assert {e.domain for e in federation.novel_test} == {"sketch"}
    assert (len(federation.base_test), len(federation.novel_test)) == (2 * 5 * 6, 5 * 6)
    assert sum(len(client.train) for client in federation.clients) == 2 * 5 * 20


def test_unseen_classes_of_the_unseen_domain() -> None:
    federation = build(make_toy(NAMES, {"train": 20, "val": 4, "test": 6}, DOMAINS))
    assert (federation.base, federation.novel) == ((0, 1, 2), (3, 4))
    assert {(e.domain, e.label) for e in federation.novel_test} == {("sketch", 3), ("sketch", 4)}


def test_without_test_images_all_of_the_unseen_domain_tests() -> None:
    data = make_toy(NAMES, {"train": 20}, DOMAINS)
    federation = build(data, classes="all")
    assert len(federation.novel_test) == 5 * 20
    assert {e.split for e in federation.novel_test} == {"test"}
    assert len(federation.base_test) == 2 * 5 * 4


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(DOMAINS), st.sampled_from(["all", "base-novel"]), st.integers(0, 2**63))
def test_nobody_trains_on_the_unseen_domain(unseen: str, classes: str, seed: int) -> None:
    data = make_toy(NAMES, {"train": 12, "test": 4}, DOMAINS)
    federation = build(data, unseen_domain=unseen, classes=classes, seed=seed)
    keys = held(federation)
    assert len(keys) == len(set(keys))
    assert unseen not in {e.domain for c in federation.clients for e in (*c.train, *c.val, *c.test)}
    assert not {e.key for e in federation.novel_test} & set(keys)
    assert not {e.key for e in federation.base_test} & {e.key for e in federation.novel_test}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"unseen_domain": None},
            UsageError,
            "partition 'leave-one-domain-out' needs the domain that nobody trains on: use"
            " --unseen-domain with one of ink, photo, sketch",
        ),
        (
            {"unseen_domain": "scetch"},
            UsageError,
            "there is no domain 'scetch'; did you mean 'sketch'?; the domains are ink, photo,"
            " sketch",
        ),
        (
            {"partition": "domain"},
            UsageError,
            "--unseen-domain belongs to --partition leave-one-domain-out, not to 'domain': leave it"
            " out, or change the partition",
        ),
        (
            {"clients": 5},
            DataError,
            "partition 'leave-one-domain-out' gives every domain equally many clients, but 5"
            " clients cannot be shared out evenly among 2 domains: use --clients 6",
        ),
    ],
)
def test_options_that_do_not_fit(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        build(make_toy(NAMES, {"train": 20}, DOMAINS), **options)
    assert str(caught.value) == message


def test_a_single_domain_leaves_nothing() -> None:
    with pytest.raises(DataError, match=r"'sketch' is the only domain\. Use another partition"):
        build(make_toy(NAMES, {"train": 20}, ("sketch",)))


PROGRAM = """
from pfedmma_deploy.data.clients_file import format_clients
from tests.data.toy import make_toy, partitioned
from tests.data.test_partition_pachinko import CIFAR100
names = tuple(CIFAR100[:10])
data = make_toy(names, {"train": 15, "test": 4}, ("ink", "photo", "sketch"))
for partition in ("disjoint", "dirichlet", "pachinko", "domain", "leave-one-domain-out"):
    unseen = "ink" if partition == "leave-one-domain-out" else None
    clients = 6 if partition == "domain" else 4
    federation = partitioned(
        data, clients=clients, partition=partition, unseen_domain=unseen, num_shots=6, seed=3
    )
    print(format_clients(federation, {"seed": 3}))
"""


def test_divisions_do_not_depend_on_the_hash_seed() -> None:
    outputs = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0].count("[[clients]]") == 4 + 4 + 4 + 6 + 4


def test_divisions_are_the_same_on_every_machine() -> None:
    # Pinned: the seeds of published runs must go on meaning what they meant.
    data = make_toy(tuple("abcdefgh"), {"train": 10, "val": 2, "test": 2})
    disjoint = partitioned(data, clients=2, num_shots=2, seed=1)
    assert [[e.key[len("None/train/") :] for e in c.train] for c in disjoint.clients] == [
        ["a/2.png", "a/7.png", "c/2.png", "c/3.png"],
        ["b/2.png", "b/5.png", "d/7.png", "d/8.png"],
    ]
    skewed = partitioned(data, clients=3, partition="dirichlet", num_shots=0, seed=1)
    assert [len(client.train) for client in skewed.clients] == [12, 14, 14]
