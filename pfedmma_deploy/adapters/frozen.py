"""No adapter at all: the frozen backbone itself, zero-shot CLIP."""

from __future__ import annotations

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.types import Scope, Tower


class Frozen(Adapter):
    """Adds nothing and has no parameters."""

    adapts: frozenset[Tower] = frozenset()

    def scopes(self) -> dict[str, Scope]:
        """Nothing to name."""
        return {}
