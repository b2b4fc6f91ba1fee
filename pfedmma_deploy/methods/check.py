"""Hyper-parameters out of range, refused in a sentence."""

from __future__ import annotations

from collections.abc import Iterable

from pfedmma_deploy.config import nearest
from pfedmma_deploy.errors import UsageError


def require_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raises `UsageError` where `value` is not one of `choices`."""
    known = list(choices)
    if value not in known:
        raise UsageError(
            f"{name} must be one of {', '.join(known)}, not {value!r}{nearest(value, known)}"
        )


def require_at_least(name: str, value: float, least: float) -> None:
    """Raises `UsageError` where `value` is below `least`."""
    if value < least:
        raise UsageError(f"{name} must be {least} or more, not {value}.")


def require_positive(name: str, value: float) -> None:
    """Raises `UsageError` where `value` is not above 0."""
    if value <= 0:
        raise UsageError(f"{name} must be above 0, not {value}.")


def require_fraction(name: str, value: float) -> None:
    """Raises `UsageError` where `value` is not within 0 and 1, both included."""
    if not 0 <= value <= 1:
        raise UsageError(f"{name} must be a number from 0 to 1, not {value}.")
