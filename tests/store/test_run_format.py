"""Runs of earlier versions are read; those of later ones are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pfedmma_deploy.config import PartitionConfig, TrainConfig
from pfedmma_deploy.errors import StoreError
from pfedmma_deploy.store.run import Run

GOLDEN = Path(__file__).parent / "golden" / "manifest-1.json"
"""What version 0.1 wrote for `train --preset quickstart --no-cache --engine sequential ...`."""


def opened(folder: Path, **changes: Any) -> Run:
    values = json.loads(GOLDEN.read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps(values | changes), encoding="utf-8")
    return Run.open(folder)


def test_the_first_version_is_read(tmp_path: Path) -> None:
    run = opened(tmp_path)
    assert run.manifest["format_version"] == 1
    assert run.config == TrainConfig(
        data="cifar10-sample",
        backbone="pfedmma-tiny",
        partition=PartitionConfig(scheme="dirichlet", clients=2, num_shots=2),
        rounds=1,
        local_epochs=1,
        batch_size=16,
        lr=0.01,
        parameters={"bottleneck_dim": 16, "scale": 0.1, "towers": "both", "share": "projection"},
        transform="none",
        # One switch stood for both.
        cache=False,
        token_shortcuts=False,
        client_batching=False,
        client_dropout=0.25,
        logit_scale=20.0,
    )


def test_new_runs_have_the_nested_form(tmp_path: Path) -> None:
    config = opened(tmp_path).config
    new = Run.create(tmp_path / "new", {"config": config.to_dict(), "clients": []}, {})
    stored = json.loads((new.folder / "manifest.json").read_text(encoding="utf-8"))
    assert stored["format_version"] == 2
    assert stored["config"]["partition"]["scheme"] == "dirichlet"
    assert stored["config"]["partition"]["num_shots"] == 2
    assert Run.open(new.folder).config == config
    # A switch of the new form says only what it is called after.
    stored["config"] |= {"cache": False, "token_shortcuts": True}
    (new.folder / "manifest.json").write_text(json.dumps(stored), encoding="utf-8")
    assert Run.open(new.folder).config.token_shortcuts


def test_later_versions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"expected format pfedmma-run version 2, found .* 3"):
        opened(tmp_path, format_version=3)
