"""`python -m pfedmma_deploy.cli` is `pfedmma`."""

from __future__ import annotations

from . import main

main()
