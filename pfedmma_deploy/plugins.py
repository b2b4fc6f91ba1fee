"""What installed packages add by entry points: methods, data sets, rules of aggregation.

A package names what it adds in its `pyproject.toml`, such as

    [project.entry-points."pfedmma.methods"]
    fedgain = "fedgain.method:FedGain"

What cannot be used becomes one sentence, and hinders nobody else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from pfedmma_deploy.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Plugins(Generic[T]):
    """What the installed packages add of one kind."""

    found: Mapping[str, T]
    """By name, in alphabetical order."""
    packages: Mapping[str, str]
    """Which package each is from, by name: `fedgain 0.1.0`."""
    problems: tuple[tuple[str, str], ...] = ()
    """Name and a sentence of each that cannot be used."""

    def require_usable(self, name: str) -> None:
        """Raises `UsageError` with the sentence where `name` is one that cannot be used."""
        for broken, sentence in self.problems:
            if broken == name and name not in self.found:
                raise UsageError(sentence)


def load_plugins(
    group: str, known: Mapping[str, object], check: Callable[[str, object], T]
) -> Plugins[T]:
    """Load the entry points of a group.

    Args:
        group: `pfedmma.methods`, `pfedmma.datasets` or `pfedmma.aggregators`.
        known: what has a name already; a plug-in may not take it.
        check: given a name and the loaded object, returns what is kept of it; raises `UsageError`
            with the reason, as a clause, where it is none of this kind.
    """
    found: dict[str, T] = {}
    packages: dict[str, str] = {}
    problems: list[tuple[str, str]] = []
    for entry in sorted(entry_points(group=group), key=lambda one: (one.name, _package(one))):
        name, package = entry.name, _package(entry)
        try:
            if name in packages:
                raise UsageError(f"{packages[name]} adds one of that name too")
            loaded = entry.load()
            # A module that is imported may have registered its class itself.
            if known.get(name, loaded) is not loaded:
                raise UsageError("the name is taken")
            found[name] = check(name, loaded)
            packages[name] = package
        except Exception as error:  # whatever somebody else's module raises when it is imported
            problems.append((name, problem(name, group, package, error)))
    return Plugins(found, packages, tuple(problems))


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "a package without a name"


def problem(name: str, group: str, package: str, error: Exception) -> str:
    """The sentence for a plug-in that cannot be used because of `error`."""
    reason = str(error).strip().partition("\n")[0]
    if not isinstance(error, UsageError):
        reason = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return (
        f"{name!r} of {package} ({group}) is left out, {reason}: update that package, or remove it"
        f" with `pip uninstall {package.partition(' ')[0]}`."
    )
