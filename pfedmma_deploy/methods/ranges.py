"""Hyper-parameters in range, or a sentence that says what was expected and what was found."""

from __future__ import annotations

from collections.abc import Sequence

from pfedmma_deploy.errors import UsageError, nearest


def at_least(name: str, value: float, least: float) -> None:
    """Raises `UsageError` where `value` is below `least`."""
    if value < least:
        raise UsageError(f"{name} must be {least} or more, not {value}.")


def above(name: str, value: float, bound: float) -> None:
    """Raises `UsageError` where `value` is not above `bound`."""
    if value <= bound:
        raise UsageError(f"{name} must be above {bound}, not {value}.")


def between(name: str, value: float, low: float, high: float) -> None:
    """Raises `UsageError` where `value` is not above `low` and at most `high`."""
    if not low < value <= high:
        raise UsageError(f"{name} must be above {low} and at most {high}, not {value}.")


def one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises `UsageError` where `value` is none of the choices."""
    if value not in choices:
        expected = " or ".join(choices)
        raise UsageError(f"{name} must be {expected}, not {value!r}{nearest(value, choices)}")
