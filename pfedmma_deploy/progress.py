"""How long work shows that it moves: the library reports, the command line draws."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Progress(Protocol):
    """Something that shows progress while items are taken from it."""

    def track(self, items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
        """The same items, one after the other; `label` says in the plural what is counted."""
        ...

    def note(self, message: str) -> None:
        """A line for the user that stays on the screen."""
        ...


class Silent:
    """Shows nothing: the default of every library function."""

    def track(self, items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
        """The same items."""
        yield from items

    def note(self, message: str) -> None:
        """Nothing."""
