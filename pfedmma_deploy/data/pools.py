"""Which images are divided together: all of them, those of a domain, or of a client folder."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from pfedmma_deploy.config import Scheme
from pfedmma_deploy.errors import DataError, UsageError, nearest
from pfedmma_deploy.types import Dataset, Example

__all__ = ["clients_per_pool", "make_pools", "take_unseen"]

_BY_DOMAIN = ("domain", "leave-one-domain-out")


def make_pools(dataset: Dataset, partition: Scheme) -> dict[str, list[Example]]:
    """The images that are divided together, by name of the pool ("" where it is all of them).

    Pools stand in natural order of their names: site-2 before site-10.

    Raises:
        DataError: a partition by domain or folder, and an image that belongs to none.
    """
    if partition in ("disjoint", "dirichlet", "pachinko"):
        return {"": list(dataset.examples)}
    pools: dict[str, list[Example]] = {}
    for example in dataset.examples:
        name = example.client
        if partition in _BY_DOMAIN:
            name = example.domain or example.client
        if name is None:
            raise _without_pools(dataset, partition, example)
        pools.setdefault(name, []).append(example)
    return {name: pools[name] for name in sorted(pools, key=_natural)}


def take_unseen(pools: dict[str, list[Example]], unseen_domain: str | None) -> tuple[Example, ...]:
    """Takes the domain that nobody trains on out of `pools` and returns its test images.

    These are all of its images where none is marked as a test image: nothing needs to be set aside
    for training.

    Raises:
        UsageError: no domain was named, or none of the data's.
        DataError: there is no other domain.
    """
    known = ", ".join(pools)
    if unseen_domain is None:
        raise UsageError(
            "partition 'leave-one-domain-out' needs the domain that nobody trains on: use"
            f" --unseen-domain with one of {known}"
        )
    if unseen_domain not in pools:
        raise UsageError(
            f"there is no domain '{unseen_domain}'{nearest(unseen_domain, pools)}; the domains are"
            f" {known}"
        )
    if len(pools) == 1:
        raise DataError(
            f"partition 'leave-one-domain-out' leaves nothing to train on: '{unseen_domain}' is the"
            " only domain. Use another partition"
        )
    images = pools.pop(unseen_domain)
    tests = [example for example in images if example.split == "test"]
    return tuple(tests or (replace(example, split="test") for example in images))


def clients_per_pool(clients: int, partition: Scheme, pools: int) -> int:
    """How many clients share each of the `pools`, given how many are wanted in all.

    Raises:
        DataError: domains that cannot have equally many clients each.
    """
    if partition == "folders":
        return 1
    if clients % pools:
        multiple = max(1, math.floor(clients / pools + 0.5)) * pools
        raise DataError(
            f"partition '{partition}' gives every domain equally many clients, but {clients}"
            f" clients cannot be shared out evenly among {pools} domains: use --clients"
            f" {multiple}"
        )
    return clients // pools


def _without_pools(dataset: Dataset, partition: Scheme, example: Example) -> DataError:
    if partition == "folders":
        expected = "one folder per client, <client>/<class>/*.jpg"
        others = "--partition disjoint or dirichlet"
    else:
        expected = "images marked with a domain, or one folder per domain, <domain>/<class>/*.jpg"
        others = "--partition disjoint, dirichlet or folders"
    return DataError(
        f"partition '{partition}' needs {expected}; in {dataset.name}, {example.key} belongs to"
        f" none: use {others}"
    )


def _natural(name: str) -> tuple[tuple[tuple[int, str], ...], str]:
    """Sorts site-2 before site-10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return tuple((int(p), "") if p[0] in "0123456789" else (-1, p) for p in parts), name
