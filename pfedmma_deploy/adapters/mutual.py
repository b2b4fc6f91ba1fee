"""Two whole multi-modal adapters on one backbone: one that travels and one that stays."""

from __future__ import annotations

from torch import Tensor

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.adapters.mma import MultiModalAdapter
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.types import Scope, Tower


class MutualAdapters(Adapter):
    """A shared model and a private one; the private one is the client's.

    Parameters are named `shared.*` and `private.*`, within as `MultiModalAdapter` names them.

    Args:
        shared: all of it is averaged.
        private: all of it stays.
    """

    def __init__(self, shared: MultiModalAdapter, private: MultiModalAdapter) -> None:
        super().__init__()
        self.shared = shared
        self.private = private
        self.adapts = private.adapts

    def first_block(self, backbone: Backbone, tower: Tower) -> int:
        """Both models sit in the same blocks."""
        return self.private.first_block(backbone, tower)

    def hook(self, tower: Tower, block: int, h: Tensor) -> Tensor | None:
        """What the private model adds."""
        return self.private.hook(tower, block, h)

    def scopes(self) -> dict[str, Scope]:
        """Those of the two models."""
        return {f"shared.{name}": scope for name, scope in self.shared.scopes().items()} | {
            f"private.{name}": scope for name, scope in self.private.scopes().items()
        }
