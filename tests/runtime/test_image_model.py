"""The GPU's way of calling a model, with ONNX Runtime's own objects in the CPU's memory."""

from __future__ import annotations

import ctypes
import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pfedmma_deploy.runtime import Classifier, image_features, image_model
from pfedmma_deploy.runtime.image_model import CpuModel, GpuModel, page_locked
from pfedmma_deploy.runtime.providers import open_session
from tests.export.sample import images

pytest_plugins = ["tests.export.fixtures"]

CLIENTS = np.array([2, 0, 1, 1, 2, 0, 0], np.int64)


class Watched:
    """A session that notes what is called, and with which graph."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.calls: list[str] = []
        self.shapes: list[list[int]] = []

    def io_binding(self) -> Any:
        return self._session.io_binding()

    def run(self, *_: object) -> None:
        raise AssertionError("not bound")

    def run_with_iobinding(self, binding: Any, settings: Any = None) -> None:
        self.calls.append(settings and settings.get_run_config_entry("gpu_graph_id"))
        self._session.run_with_iobinding(binding, settings)


@pytest.fixture(scope="module")
def session(bundle: Path) -> Any:
    return open_session(bundle / "vision_model.onnx", "cpu")


@pytest.fixture
def watched(session: Any, monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.setattr(image_model, "MEMORY", "cpu")
    return Watched(session)


def expected(session: Any, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return CpuModel(session)(list(pixels), CLIENTS[: len(pixels)])


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_the_same_features(session: Any, watched: Watched, graphs: bool, count: int) -> None:
    model = GpuModel(watched, 16, 24, graphs=graphs)
    for seed in range(3):
        pixels = images(count, seed)
        found = model(list(pixels), CLIENTS[:count])
        np.testing.assert_allclose(found, expected(session, pixels), atol=1e-6)
    size = {1: "1", 3: "4", 4: "4", 7: "8"}[count]
    assert watched.calls == [size if graphs else None] * 3


def test_one_recording_for_each_size(watched: Watched) -> None:
    model = GpuModel(watched, 16, 24, graphs=True)
    kept = [model(list(images(count)), CLIENTS[:count]) for count in (5, 2, 7, 1, 2)]
    assert watched.calls == ["8", "2", "8", "1", "2"]
    assert sorted(model._recorded) == [1, 2, 8]
    again = model(list(images(2, 9)), CLIENTS[:2])
    assert not np.allclose(again, kept[1]), "an older answer is not overwritten by a later one"
    np.testing.assert_array_equal(kept[1], kept[4])


@pytest.mark.parametrize("graphs", [False, True])
def test_large_batches_go_in_parts(
    session: Any, watched: Watched, graphs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_model, "LARGEST_BATCH", 4)
    model = GpuModel(watched, 16, 24, graphs=graphs)
    pixels = images(7)
    np.testing.assert_allclose(model(list(pixels), CLIENTS), expected(session, pixels), atol=1e-6)
    assert len(watched.calls) == 2


@pytest.mark.parametrize("graphs", [False, True])
def test_many_threads_one_gpu(session: Any, watched: Watched, graphs: bool) -> None:
    model = GpuModel(watched, 16, 24, graphs=graphs)
    jobs = [images(1 + seed % 7, seed) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda pixels: model(list(pixels), CLIENTS[: len(pixels)]), jobs))
    for pixels, features in zip(jobs, found, strict=True):
        np.testing.assert_allclose(features, expected(session, pixels), atol=1e-6)
    assert model._spare.qsize() <= 8


def test_memory_is_used_again(watched: Watched) -> None:
    model = GpuModel(watched, 16, 24, graphs=False)
    for count in (3, 4, 2, 1):
        model(list(images(count)), CLIENTS[:count])
    assert model._spare.qsize() == 1
    assert len(model._spare.get()) == 4


def test_errors_come_back_from_the_thread(watched: Watched) -> None:
    model = GpuModel(watched, 16, 24, graphs=False)
    with pytest.raises(Exception, match=r"(?i)indices|out of|bounds|range"):
        model(list(images(1)), np.array([99], np.int64))
    assert model(list(images(1)), CLIENTS[:1]).shape == (1, 24)


def test_a_classifier_with_a_gpu(
    bundle: Path, session: Any, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the CPU stands in for the GPU, the answers are those of the CPU."""
    opened: list[dict[str, Any]] = []

    def open_instead(file: Path, device: str, **options: Any) -> Any:
        opened.append({"file": file.name, "device": device, **options})
        return session

    monkeypatch.setattr(image_features, "resolve_device", lambda device: ("cuda", None))
    monkeypatch.setattr(image_features, "open_session", open_instead)
    on_gpu = Classifier.load(bundle, "cuda", threads=2, cuda_graphs=True)
    assert opened == [
        {
            "file": "vision_model.onnx",
            "device": "cuda",
            "threads": 2,
            "options": {"enable_cuda_graph": "1"},
        }
    ]
    clients: list[str | int] = ["0", 0, "north"] * 3
    found = on_gpu.predict(images(9), clients, batch_size=4)
    for one, other in zip(
        found, Classifier.load(bundle, "cpu").predict(images(9), clients), strict=True
    ):
        assert one.client == other.client
        assert one.top[0].probability == pytest.approx(other.top[0].probability, abs=1e-5)


class Driver:
    """The calls of NVIDIA's driver that lock memory."""

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            return self.code if name in {"cuMemHostRegister_v2"} else 0

        return call


def test_memory_is_locked_and_unlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    pixels = page_locked((2, 4, 4, 3))
    assert pixels.shape == (2, 4, 4, 3) and pixels.dtype == np.uint8
    locked = ["cuCtxPushCurrent_v2", "cuMemHostRegister_v2", "cuCtxPopCurrent_v2"]
    assert driver.calls == ["cuDevicePrimaryCtxRetain", *locked]
    part = pixels[:1]
    del pixels
    gc.collect()
    assert len(driver.calls) == 4, "still in use"
    del part
    gc.collect()
    assert driver.calls[4:] == [
        "cuCtxPushCurrent_v2",
        "cuMemHostUnregister",
        "cuCtxPopCurrent_v2",
    ]


def test_memory_that_cannot_be_locked_serves_too(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(code=2)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert page_locked((1, 4, 4, 3)).shape == (1, 4, 4, 3)
    gc.collect()
    assert "cuMemHostUnregister" not in driver.calls

    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert not page_locked((1, 4, 4, 3)).any()
    without = SimpleNamespace(cuDevicePrimaryCtxRetain=lambda *_: 100)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: without)
    assert not page_locked((1, 4, 4, 3)).any()
