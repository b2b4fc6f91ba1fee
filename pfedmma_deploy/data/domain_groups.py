"""Which images are partitioned together: all of them, those of a domain, or of a client folder."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from pfedmma_deploy.config import Scheme
from pfedmma_deploy.errors import DataError, UsageError, nearest
from pfedmma_deploy.types import Dataset, Example

_BY_DOMAIN = ("domain", "leave-one-domain-out")


def group_examples(dataset: Dataset, scheme: Scheme) -> dict[str, list[Example]]:
    """The images that are partitioned together, by name of the group ("" where it is all of them).

    Groups stand in natural order of their names: site-2 before site-10.

    Raises:
        DataError: a partition by domain or folder, and an image that belongs to none.
    """
    if scheme in ("disjoint", "dirichlet", "pachinko"):
        return {"": list(dataset.examples)}
    groups: dict[str, list[Example]] = {}
    for example in dataset.examples:
        name = example.client
        if scheme in _BY_DOMAIN:
            name = example.domain or example.client
        if name is None:
            raise _without_group(dataset, scheme, example)
        groups.setdefault(name, []).append(example)
    return {name: groups[name] for name in sorted(groups, key=_natural)}


def take_unseen(groups: dict[str, list[Example]], unseen_domain: str | None) -> tuple[Example, ...]:
    """Takes the domain that nobody trains on out of `groups` and returns its test images.

    These are all of its images where none is marked as a test image: nothing needs to be set aside
    for training.

    Raises:
        UsageError: no domain was named, or none of the data's.
        DataError: there is no other domain.
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


def clients_per_group(clients: int, scheme: Scheme, groups: int) -> int:
    """How many clients share each of the `groups`, given how many are wanted in all.

    Raises:
        DataError: domains that cannot have equally many clients each.
    """
    if scheme == "folders":
        return 1
    if clients % groups:
        multiple = max(1, math.floor(clients / groups + 0.5)) * groups
        raise DataError(
            f"partition '{scheme}' gives every domain equally many clients, but {clients}"
            f" clients cannot be shared out evenly among {groups} domains: use --clients"
            f" {multiple}"
        )
    return clients // groups


def _without_group(dataset: Dataset, scheme: Scheme, example: Example) -> DataError:
    if scheme == "folders":
        expected = "one folder per client, <client>/<class>/*.jpg"
        others = "--partition disjoint or dirichlet"
    else:
        expected = "images marked with a domain, or one folder per domain, <domain>/<class>/*.jpg"
        others = "--partition disjoint, dirichlet or folders"
    return DataError(
        f"partition '{scheme}' needs {expected}; in {dataset.name}, {example.key} belongs to"
        f" none: use {others}"
    )


def _natural(name: str) -> tuple[tuple[tuple[int, str], ...], str]:
    """Sorts site-2 before site-10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return tuple((int(p), "") if p[0] in "0123456789" else (-1, p) for p in parts), name
