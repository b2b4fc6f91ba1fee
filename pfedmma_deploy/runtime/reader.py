"""Typed access to the JSON of a bundle's manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pfedmma_deploy.errors import BundleError

__all__ = ["Reader"]

_NAMES = {str: "text", int: "a whole number", float: "a number", list: "a list", dict: "an object"}


class Reader:
    """Typed access to a JSON object; an error names the key, what was expected and found."""

    def __init__(self, raw: Mapping[str, Any], prefix: str = "") -> None:
        self.raw, self.prefix = raw, prefix

    def get(self, key: str, kind: type) -> Any:
        value = self.raw.get(key)
        # A whole float may have been written as an int; a bool is an int to Python, not to us.
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            found = type(value).__name__ if key in self.raw else "nothing"
            raise BundleError(
                f"The manifest's {self.prefix}{key} should be {_NAMES.get(kind, kind.__name__)}, "
                f"found {found}: the bundle is damaged, export it again."
            )
        return value

    def items(self, key: str, kind: type) -> list[Any]:
        values = self.get(key, list)
        inner = Reader(dict(enumerate(values)), f"{self.prefix}{key}.")  # type: ignore[arg-type]
        return [inner.get(cast(str, index), kind) for index in range(len(values))]

    def one_of(self, key: str, *allowed: str) -> Any:
        value = self.get(key, str)
        if value not in allowed:
            raise BundleError(
                f"The manifest's {self.prefix}{key} should be one of {', '.join(allowed)}, "
                f"found {value!r}: export the bundle again."
            )
        return value
