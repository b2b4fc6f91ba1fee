"""Defects of earlier implementations of this field, each kept out by a test.

1. text features of one client scoring another       evaluation/test_accuracy.py
2. images paired with other images' labels           test_round_by_hand.py, data/test_federation.py
3. class order that changes with the hash seed       data/test_federation.py
4. equal Dirichlet proportions, seed ignored         data/test_partition.py
5. one optimizer state for all clients               test_round_by_hand.py
6. clients dropped, endless draws                    data/test_partition.py
7. checkpoints chosen on test images                 here
8. sharing decided by a substring of a name          here
9. flags silently overridden by a file               test_config.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.config import TrainConfig
from pfedmma_deploy.data.pixels import PixelLoader
from pfedmma_deploy.federated.train import train
from pfedmma_deploy.types import Example, Scope, Tower


def test_training_never_uses_a_test_image(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that training decides can depend on test accuracy: the last round is what is kept."""
    used: set[str] = set()
    decode = PixelLoader._decode

    def watch(self: PixelLoader, example: Example, *how: Any) -> Any:
        used.add(example.split)
        return decode(self, example, *how)

    monkeypatch.setattr(PixelLoader, "_decode", watch)
    train(config, tmp_path / "run")
    # The checks beforehand look for copies in all splits; no model is shown a test image.
    assert used == {"train", "val"}


class Misleading(Adapter):
    """Names that say the opposite of what the module declares."""

    def __init__(self) -> None:
        super().__init__()
        self.shared_adapter = nn.Linear(1, 1)
        self.local_head = nn.Linear(1, 1)

    def hook(self, tower: Tower, block: int, h: Tensor) -> Tensor | None:
        return None

    def scopes(self) -> dict[str, Scope]:
        return {
            "shared_adapter.weight": Scope.LOCAL,
            "shared_adapter.bias": Scope.LOCAL,
            "local_head.weight": Scope.SHARED,
            "local_head.bias": Scope.SHARED,
        }


def test_a_module_declares_its_scopes() -> None:
    adapter = Misleading()
    assert set(adapter.tensors(Scope.SHARED)) == {"local_head.weight", "local_head.bias"}
    assert set(adapter.tensors(Scope.LOCAL)) == {"shared_adapter.weight", "shared_adapter.bias"}
    copied = adapter.tensors(Scope.SHARED)["local_head.weight"]
    copied.add_(1)
    assert not torch.equal(copied, adapter.local_head.weight.detach())
