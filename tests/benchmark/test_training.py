"""The training benchmark: that its ways compute the same, and what its rows say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pfedmma_deploy.benchmark.training import (
    NAIVE,
    OURS,
    TrainingSeconds,
    TrainingTask,
    round_section,
    time_way,
    training_rows,
    write_noise,
)
from pfedmma_deploy.config import PartitionConfig
from pfedmma_deploy.data.datasets import load_dataset
from pfedmma_deploy.data.federation import build_federation
from tests.tinyclip import register

TASK = TrainingTask(register(), clients=2, classes=2, shots=3, batch_size=2)


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PFEDMMA_CACHE", str(tmp_path / "cache"))
    write_noise(tmp_path / "images", TASK)
    return tmp_path / "images"


def test_the_federation_has_clients_of_one_size(images: Path) -> None:
    federation = build_federation(load_dataset(images), PartitionConfig(clients=2))
    assert [len(client.train) for client in federation.clients] == [3, 3]
    assert len({e.key for client in federation.clients for e in client.train}) == 6
    assert (len(federation.base_test), len(federation.novel_test)) == (2, 2)


def test_both_ways_come_to_the_same_weights(images: Path, tmp_path: Path) -> None:
    naive = time_way(TASK, NAIVE, images, tmp_path / "naive")
    ours = time_way(TASK, OURS, images, tmp_path / "ours")
    assert training_rows(TASK, [naive, ours])[1]["weight_difference"] < 1e-6
    assert naive.train > 0 < naive.evaluate


def took(name: str, seconds: float, weight: float) -> TrainingSeconds:
    shared = {"w": np.array([weight], np.float32)}
    return TrainingSeconds(name, seconds, seconds / 2, 0.5, 10**9, shared)


def test_ratios_are_to_the_naive_baseline() -> None:
    found = [took(NAIVE.name, 6.0, 1.0), took(OURS.name, 4.0, 1.5)]
    first, second = training_rows(TASK, found)
    assert first["ratio"] is None and first["seconds_per_step"] == 1.5
    assert second["ratio"] == pytest.approx(1.5)
    assert second["weight_difference"] == 0.5
    cells = round_section([first, second]).cells
    assert [row[-2:] for row in cells] == [["-", "-"], ["1.50", "0.50"]]


def test_one_of_many_clients() -> None:
    """Its images over its seconds, not those of the whole federation."""
    task = replace(TASK, clients=3, shots=6, of_clients=1)
    (row,) = training_rows(task, [took(OURS.name, 2.0, 1.0)])
    assert (row["participants"], row["images_per_second"], row["ratio"]) == (1, 2.0, None)
