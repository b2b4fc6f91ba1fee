"""The `pfedmma` command: one file per command; installs as `pfedmma_deploy.cli`."""

from __future__ import annotations

import sys
import warnings

__all__ = ["main"]


def main() -> None:
    """Run the command line with `sys.argv` and leave with its exit code (0, 1, 2 or 130)."""
    from .main import run

    if "--verbose" not in sys.argv and not sys.warnoptions:
        # Remarks of libraries to programmers; nothing that a user of the commands can act on.
        warnings.simplefilter("ignore")
    sys.exit(run(sys.argv[1:]))
