"""A run finds its images again, from wherever a command is given."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pfedmma_deploy.config import PartitionConfig, TrainConfig
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.federated.session import open_run_session
from pfedmma_deploy.federated.train import train
from pfedmma_deploy.store.run import Run
from tests.federated.conftest import config, one_thread, sites

__all__ = ["config", "one_thread", "sites"]


@pytest.fixture
def project(
    sites: Path,
    config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """`sites` and `runs/one` in one folder, trained with `--data sites` from there."""
    folder = tmp_path / "project"
    shutil.copytree(sites, folder / "sites")
    monkeypatch.chdir(folder)
    train(replace(config, data="sites", rounds=1), Path("runs/one"))
    return folder


def test_from_another_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "runs" / "sites").mkdir()
    monkeypatch.chdir(project / "runs")
    found = open_run_session(Run.open(Path("one")))
    assert len(found.federation.clients) == 2, "not the empty folder of the same name"


def test_moved_together(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = project.rename(project.with_name("elsewhere"))
    monkeypatch.chdir(moved.parent)
    assert open_run_session(Run.open(moved / "runs" / "one")).federation.base_test


def test_the_run_alone_moved(project: Path, tmp_path: Path) -> None:
    """Then `--data` counts as it was given."""
    alone = (project / "runs" / "one").rename(tmp_path / "one")
    assert open_run_session(Run.open(alone)).federation.base_test
    (project / "sites").rename(project / "other")
    with pytest.raises(DataError, match="there is no folder 'sites'"):
        open_run_session(Run.open(alone))


def test_a_sample_has_no_place(
    config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "cifar10-sample").mkdir()
    monkeypatch.chdir(tmp_path)
    sample = replace(
        config, data="cifar10-sample", partition=PartitionConfig(clients=2, num_shots=1)
    )
    run = train(replace(sample, rounds=1), Path("run")).run
    assert run.manifest["data_path"] is None
