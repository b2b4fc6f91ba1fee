"""Who may ask for whom: keys, of which the file holds hashes alone.

    [ward-a]
    sha256 = "9f86d0..."
    clients = ["3", "7"]

A key is 32 random bytes, which nobody guesses, so its plain SHA-256 gives nothing away.
"""

from __future__ import annotations

import hashlib
import secrets
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pfedmma_deploy.errors import UsageError

ALL: Final = "all"
_FIELDS: Final = {"sha256", "clients", "metrics"}


@dataclass(frozen=True, slots=True)
class Access:
    """What one key opens."""

    group: str
    """The key's name in the file; in logs and metrics instead of the key."""
    clients: frozenset[str] | Literal["all"]
    """Ids beside zero-shot, which everybody sees; `all` counts clients that join later."""
    metrics: bool = False
    """Whether it opens `/metrics`."""

    def sees(self, client: str) -> bool:
        """Whether a client other than zero-shot may be asked for."""
        return self.clients == ALL or client in self.clients


EVERYTHING: Final = Access(ALL, ALL, metrics=True)
"""Without a file of keys, on this machine alone."""
NOTHING: Final = Access("-", frozenset())
"""For paths that need no key."""


class Keys:
    """A file of keys that has been read."""

    def __init__(self, by_hash: Mapping[str, Access]) -> None:
        self._by_hash = by_hash

    @classmethod
    def load(cls, path: Path) -> Keys:
        """The keys in a TOML file, one table each.

        Raises:
            UsageError: it cannot be read, or a table is not as it should be; never shows a hash.
        """
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(
                f"The file of keys {path} cannot be read ({error.strerror}): make one with "
                f"`pfedmma key NAME --clients 3 --keys {path}`."
            ) from error
        except ValueError as error:
            raise UsageError(f"The file of keys {path} is no TOML ({error}): mend it.") from error
        by_hash: dict[str, Access] = {}
        for name, table in tables.items():
            found, access = _read(path, name, table)
            if found in by_hash:
                raise UsageError(
                    f"{path}: {name} and {by_hash[found].group} have one key: give each its own."
                )
            by_hash[found] = access
        if not by_hash:
            raise UsageError(f"{path} has no keys: make one with `pfedmma key`.")
        return cls(by_hash)

    def find(self, key: str) -> Access | None:
        """What a key opens; None where there is no such key."""
        return self._by_hash.get(_hash(key))

    def named(self) -> frozenset[str]:
        """Ids of all clients that are named in the file."""
        ids: set[str] = set()
        for access in self._by_hash.values():
            ids |= access.clients if access.clients != ALL else frozenset()
        return frozenset(ids)


def add_key(path: Path, name: str, clients: Sequence[str], *, metrics: bool = False) -> str:
    """Append a new key to a file, made where it is not there (mode 600), and return the key.

    Args:
        path: the file.
        name: the table's.
        clients: ids that the key opens, or `["all"]`.
        metrics: whether it opens `/metrics`.

    Raises:
        UsageError: the file cannot be read, or has a key of that name.
    """
    import tomlkit

    # Whoever reads a damaged file would lose what is behind the damage.
    if path.exists() and path.stat().st_size:
        Keys.load(path)
    document = (
        tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else tomlkit.document()
    )
    if name in document:
        raise UsageError(f"{path} has a key named {name!r}: remove that table, or choose a name.")
    key = secrets.token_urlsafe(32)
    table = tomlkit.table()
    table["sha256"] = _hash(key)
    table["clients"] = ALL if list(clients) == [ALL] else list(clients)
    if metrics:
        table["metrics"] = True
    document[name] = table
    partial = path.with_name(f".{path.name}.partial")
    partial.touch(mode=0o600)
    partial.write_text(tomlkit.dumps(document), encoding="utf-8")
    partial.replace(path)
    return key


def _read(path: Path, name: str, table: Any) -> tuple[str, Access]:
    if not isinstance(table, dict):
        raise UsageError(f"{path}: {name} should be a table [{name}] with sha256 and clients.")
    unknown = sorted(set(table) - _FIELDS)
    if unknown:
        raise UsageError(
            f"{path}: [{name}] has {unknown[0]!r}, expected sha256, clients and metrics alone."
        )
    found, clients = table.get("sha256"), table.get("clients")
    if not isinstance(found, str) or len(found) != 64 or set(found) - set("0123456789abcdef"):
        raise UsageError(
            f"{path}: sha256 of [{name}] should be 64 hexadecimal digits: make the key with "
            "`pfedmma key`."
        )
    if clients != ALL and not (
        isinstance(clients, list) and all(isinstance(client, str) for client in clients)
    ):
        raise UsageError(
            f'{path}: clients of [{name}] should be a list of ids such as ["3"], or "all", found '
            f"{clients!r}."
        )
    metrics = table.get("metrics", False)
    if not isinstance(metrics, bool):
        raise UsageError(f"{path}: metrics of [{name}] is true or false, found {metrics!r}.")
    return found, Access(name, ALL if clients == ALL else frozenset(clients), metrics)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
