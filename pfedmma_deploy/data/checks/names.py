"""Class names: the same twice, ids instead of words, an order that is not the sorted one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from pfedmma_deploy.data.checks.problems import Problem, find_problem
from pfedmma_deploy.types import Dataset

__all__ = ["check_names", "check_order", "class_key", "is_id"]

_PUBLISHED_ORDER: Final = ("aircraft", "fedbn", "imagenet", "lists", "official", "split")
"""Forms of data sets on disk, as `readers` name them."""
_ORDERLESS: Final = (set, frozenset, dict)
# Not "C-130" or "747-200", which are names of aircraft.
_IDS: Final = re.compile(
    r"""
      \d+                                                # 7
    | (?:n|wn)[ ]?\d{8}                                  # n01440764 of WordNet
    | (?:class|cls|label|category|cat|type|group|object|obj|item|species|folder|id|idx)[ #-]?\d+
    | (?=.*\d)[0-9a-f]{8}(?:[ -]?[0-9a-f]{4}){0,3}[0-9a-f -]*   # hashes and UUIDs
    | /?m[/ ]0[0-9a-z_]+                                 # /m/0k4j of Open Images
    """,
    re.VERBOSE,
)


def class_key(name: str) -> str:
    """What two class names have in common when a reader would call them the same."""
    text = unicodedata.normalize("NFKC", name).replace("_", " ")
    return re.sub(r"\s+", " ", text).strip().casefold()


def is_id(name: str) -> bool:
    """Whether a class name is a number or a code, which no text encoder can make sense of."""
    return _IDS.fullmatch(class_key(name)) is not None


def check_names(names: Sequence[str]) -> list[Problem]:
    """Names that say the same, that are ids, and too few of them to tell anything apart."""
    if isinstance(names, _ORDERLESS):
        return find_problem("unordered-classes", [f"a {type(names).__name__} of {len(names)}"])
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(class_key(name), []).append(f"'{name}'")
    same = [" and ".join(group) for group in groups.values() if len(group) > 1]
    problems = find_problem("same-class-name", same)
    if len(names) < 2:
        problems += find_problem("one-class", [*names] or ["none at all"])
    return problems + find_problem("id-names", [f"'{name}'" for name in names if is_id(name)])


def check_order(dataset: Dataset) -> list[Problem]:
    """Names out of sorted order, upper and lower case alike or capitals first.

    Data sets that were read by their publishers' lists have the order of these, and no problem.
    """
    names = dataset.class_names
    if getattr(dataset, "form", None) in _PUBLISHED_ORDER or list(names) in (
        sorted(names),
        sorted(names, key=str.casefold),
    ):
        return []
    steps = [
        f"'{first}' before '{second}'"
        for first, second in pairwise(names)
        if first.casefold() > second.casefold()
    ]
    return find_problem("class-order", steps)
