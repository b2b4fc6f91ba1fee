"""The training benchmark: that its ways compute the same, and what its rows say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pfedmma_deploy.benchmark import training
from pfedmma_deploy.benchmark.training import (
    NAIVE,
    OURS,
    OURS_BF16,
    TrainingSeconds,
    TrainingTask,
    default_ways,
    round_section,
    round_tasks,
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


def test_on_a_gpu_the_second_training_in_a_process_counts(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first loads kernels, and caches the activations, which counts by itself."""
    once = time_way(TASK, OURS, images, tmp_path / "once")
    assert [path.name for path in (tmp_path / "once").iterdir()] == ["first"]
    monkeypatch.setattr(training, "training_gpu", lambda: "a card")
    twice = time_way(TASK, OURS, images, tmp_path / "twice")
    assert {path.name for path in (tmp_path / "twice").iterdir()} == {"first", "second"}
    assert all(np.array_equal(once.shared[name], twice.shared[name]) for name in once.shared)
    assert once.gpu_memory is None


def test_what_is_measured_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 where the card has it, and all ten clients, which take it no time."""
    monkeypatch.setattr(training, "training_gpu", lambda: "a card")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    assert [way.name for way in default_ways()] == [NAIVE.name, OURS.name, OURS_BF16.name]
    assert [task.participants for task in round_tasks("ViT-B-16")] == [10, 10]
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: False)
    assert default_ways() == [NAIVE, OURS]


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
