"""The classes of a federation whose sites propose them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pfedmma_deploy.fleet.messages import Note
from pfedmma_deploy.fleet.server import propose_class_names


def desk(**proposed: list[str]) -> Any:
    greeted = {site: Note("hello", {"class_names": names}) for site, names in proposed.items()}
    return SimpleNamespace(greeted=greeted, here=lambda: [SimpleNamespace(id=s) for s in proposed])


def test_the_sorted_names_of_all_sites() -> None:
    assert propose_class_names(desk(b=["ship", "cat"], a=["dog", "cat"])) == ["cat", "dog", "ship"]


def test_a_class_that_two_sites_write_differently_is_one() -> None:
    assert propose_class_names(desk(a=["cat", "tree frog"], b=["Cat", "tree_frog"])) == [
        "Cat",
        "tree frog",
    ]
