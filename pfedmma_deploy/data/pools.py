"""Which images are divided among which clients: all together, by domain, or by client folder."""

from __future__ import annotations

import math
import re

from pfedmma_deploy.config import Partition
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Dataset, Example

__all__ = ["clients_per_pool", "make_pools"]


def make_pools(dataset: Dataset, partition: Partition) -> dict[str, list[Example]]:
    """The images that are divided together, by name of the pool ("" where it is all of them).

    Pools stand in natural order of their names: site-2 before site-10.

    Raises:
        DataError: a partition by domain or folder, and an image that belongs to none.
    """
    if partition in ("disjoint", "dirichlet"):
        return {"": list(dataset.examples)}
    pools: dict[str, list[Example]] = {}
    for example in dataset.examples:
        name = example.client
        if partition == "domain":
            name = example.domain or example.client
        if name is None:
            raise _without_pools(dataset, partition, example)
        pools.setdefault(name, []).append(example)
    return {name: pools[name] for name in sorted(pools, key=_natural)}


def clients_per_pool(clients: int, partition: Partition, pools: int) -> int:
    """How many clients share each of the `pools`, given how many are wanted in all.

    Raises:
        DataError: domains that cannot have equally many clients each.
    """
    if partition == "folders":
        return 1
    if clients % pools:
        nearest = max(1, math.floor(clients / pools + 0.5)) * pools
        raise DataError(
            f"partition 'domain' gives every domain equally many clients, but {clients} clients"
            f" cannot be shared out evenly among {pools} domains: use --clients {nearest}"
        )
    return clients // pools


def _without_pools(dataset: Dataset, partition: Partition, example: Example) -> DataError:
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
