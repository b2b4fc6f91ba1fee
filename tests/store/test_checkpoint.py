"""Who may remove files of a checkpoint: `pfedmma fleet add` opens one that a server writes to."""

from __future__ import annotations

from pathlib import Path

import torch

from pfedmma_deploy.store.checkpoint import Checkpoint


def test_only_who_trains_removes_what_no_state_names(tmp_path: Path) -> None:
    writer = Checkpoint(tmp_path)
    writer.commit(0, {"w": torch.zeros(1)}, {"round": 1})
    in_the_making = tmp_path / "shared.r1.safetensors"
    in_the_making.write_bytes(b"the next round's")
    assert Checkpoint(tmp_path).round == 0
    assert in_the_making.exists()
    writer.remove_leftovers()
    assert not in_the_making.exists()
    assert (tmp_path / "shared.r0.safetensors").exists()
