"""A terminal to draw on."""

from __future__ import annotations

import io


class Terminal(io.StringIO):
    """A stream that says that somebody watches."""

    def isatty(self) -> bool:
        return True
