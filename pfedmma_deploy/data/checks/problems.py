"""Findings: one per kind, with count and examples; the fatal ones refuse the data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from pfedmma_deploy.data.checks.kinds import KINDS, Level
from pfedmma_deploy.errors import DataError

__all__ = ["Problem", "find_problem", "require_usable"]

_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of finding: how often, where for example, and what to do."""

    kind: str
    """A key of `KINDS`."""
    count: int
    examples: tuple[str, ...]
    """The first few places, not all `count` of them."""

    @property
    def level(self) -> Level:
        """How bad it is."""
        return KINDS[self.kind].level

    @property
    def title(self) -> str:
        """What was found, in the plural."""
        return KINDS[self.kind].title

    @property
    def advice(self) -> str:
        """What to do, one or two sentences."""
        return KINDS[self.kind].advice

    def __str__(self) -> str:
        shown = ", ".join(self.examples)
        more = self.count - len(self.examples)
        rest = f" and {more:,} more" if more > 0 else ""
        return f"{self.title} ({self.count:,}): {shown}{rest}. {self.advice}"


def find_problem(kind: str, places: Sequence[str], count: int | None = None) -> list[Problem]:
    """The problem of that kind in a list, or an empty list where `places` is empty."""
    if not places:
        return []
    return [Problem(kind, len(places) if count is None else count, tuple(places[:_SHOWN]))]


def require_usable(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Raises `DataError` with every fatal problem, one per line; else returns the others."""
    problems = tuple(problems)
    fatal = [str(problem) for problem in problems if problem.level == "fatal"]
    if fatal:
        raise DataError("the data cannot be trained on as they are:\n- " + "\n- ".join(fatal))
    return problems
