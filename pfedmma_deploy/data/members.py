"""Clients put together from the images that fell to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np

from pfedmma_deploy.data.partition import Part, draw_shots
from pfedmma_deploy.types import ClientData, Example, Split

__all__ = ["draw_images", "labels_of", "make_client", "make_clients", "of_labels"]


def draw_images(
    examples: Sequence[Example], labels: Sequence[int], num_shots: int, rng: np.random.Generator
) -> dict[Split, list[Example]]:
    """The images of these labels by split, `num_shots` of each class for training (0: all)."""
    wanted = set(labels)
    drawn: dict[Split, list[Example]] = {split: [] for split in get_args(Split)}
    for example in examples:
        if example.label in wanted:
            drawn[example.split].append(example)
    shots = draw_shots(labels_of(drawn["train"]), num_shots, rng)
    drawn["train"] = [drawn["train"][index] for index in shots]
    return drawn


def make_clients(
    pool: str, drawn: dict[Split, list[Example]], parts: Sequence[Part]
) -> list[ClientData]:
    """One client per part; its id is its number, behind the pool's name where there is one."""
    clients = []
    for number, part in enumerate(parts):
        held = {split: [drawn[split][index] for index in part[split]] for split in drawn}
        client = make_client(f"{pool}-{number}" if pool else str(number), held)
        clients.append(replace(client, domain=pool) if pool else client)
    return clients


def make_client(client_id: str, held: dict[Split, list[Example]]) -> ClientData:
    """A client of these images; those to validate and test on are of classes it trains on."""
    classes = tuple(sorted({example.label for example in held["train"]}))
    domains = {example.domain for examples in held.values() for example in examples}
    return ClientData(
        id=client_id,
        classes=classes,
        train=tuple(held["train"]),
        val=of_labels(held["val"], classes),
        test=of_labels(held["test"], classes),
        domain=domains.pop() if len(domains) == 1 else None,
    )


def labels_of(examples: Sequence[Example]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Labels [n]."""
    return np.array([example.label for example in examples], dtype=np.int64)


def of_labels(examples: Sequence[Example], labels: Sequence[int]) -> tuple[Example, ...]:
    """Those of the given labels, in their order."""
    wanted = set(labels)
    return tuple(example for example in examples if example.label in wanted)
