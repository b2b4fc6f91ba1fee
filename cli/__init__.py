"""The `pfedmma` command: one file per command; installs as `pfedmma_deploy.cli`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line with `sys.argv` and leave with its exit code (0, 1, 2 or 130)."""
    from .main import run

    sys.exit(run(sys.argv[1:]))
