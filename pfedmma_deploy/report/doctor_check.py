"""One finding of `pfedmma doctor`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

__all__ = ["Check", "guarded"]


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, whether it is well, what was found and what to do about it."""

    name: str
    ok: bool
    found: str
    advice: str = ""
    stops: bool = False
    """Whether something that was asked for cannot work: the exit code is then 1."""
    absent: bool = False
    """Whether it is not there, and nobody asked for it."""

    def to_dict(self) -> dict[str, str | bool]:
        """The stable keys of `pfedmma doctor --json`."""
        return {"name": self.name, "ok": self.ok, "found": self.found, "advice": self.advice}


def guarded(name: str, look: Callable[[], Iterable[Check]]) -> list[Check]:
    """The findings of `look`; a failure of it is a finding under `name`, never an exception."""
    checks = []
    try:
        for check in look():
            checks.append(check)  # what came before a failure stays
    except Exception as error:  # whatever a broken installation raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        found = f"could not be looked at ({reason})"
        advice = "install the packages again in a fresh environment; if this stays, report it"
        checks.append(Check(name, False, found, advice))
    return checks
