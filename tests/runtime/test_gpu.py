"""On a machine with a GPU: the same answers as on the CPU. Run with `pytest -m gpu`."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pfedmma_deploy.runtime import Classifier
from pfedmma_deploy.runtime.providers import tensorrt_problem
from tests.export.sample import images

if TYPE_CHECKING:
    from pfedmma_deploy.export.bundle import ExportReport

pytest_plugins = ["tests.export.fixtures"]
pytestmark = pytest.mark.gpu

CLIENTS: list[str | int] = ["north", 0, "0", "0", "north", 0, 0]


@pytest.fixture(params=["ort", "portable"])
def folder(request: pytest.FixtureRequest, bundle: Path, portable: ExportReport) -> Path:
    return bundle if request.param == "ort" else portable.bundle


def same(one: Classifier, folder: Path, batch_size: int) -> None:
    """Features of mixed clients equal the CPU's, call after call."""
    on_cpu = Classifier.load(folder, "cpu")
    for seed in range(4):
        pixels = images(7, seed)
        found = one.embed_images(pixels, CLIENTS, batch_size=batch_size)
        wanted = on_cpu.embed_images(pixels, CLIENTS)
        # CUDA's fp32 multiplies in TF32 by default: ten bits of mantissa.
        np.testing.assert_allclose(found, wanted, atol=5e-3)


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_cuda(folder: Path, batch_size: int) -> None:
    classifier = Classifier.load(folder, "cuda")
    assert classifier.provider == "CUDAExecutionProvider"
    same(classifier, folder, batch_size)


def test_cuda_from_many_threads(folder: Path) -> None:
    classifier = Classifier.load(folder, "cuda")
    jobs = [images(1 + seed % 7, seed) for seed in range(24)]
    on_cpu = Classifier.load(folder, "cpu")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda pixels: classifier.embed_images(pixels, 1), jobs))
    for pixels, features in zip(jobs, found, strict=True):
        np.testing.assert_allclose(features, on_cpu.embed_images(pixels, 1), atol=5e-3)


def test_typed_classes_on_cuda(folder: Path) -> None:
    texts = ["zebra", "a steam engine"]
    found = Classifier.load(folder, "cuda").embed_texts(texts, "north")
    wanted = Classifier.load(folder, "cpu").embed_texts(texts, "north")
    np.testing.assert_allclose(found, wanted, atol=5e-3)


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    problem = tensorrt_problem()
    if problem is not None:
        pytest.skip(problem)
    monkeypatch.setenv("PFEDMMA_CACHE", str(tmp_path))
    yield tmp_path


def test_tensorrt(portable: ExportReport, engines: Path) -> None:
    classifier = Classifier.load(portable.bundle, "tensorrt")
    assert classifier.provider == "TensorrtExecutionProvider"
    same(classifier, portable.bundle, 7)
    assert list(engines.rglob("*.engine")), "the engine is kept"
