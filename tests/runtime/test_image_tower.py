"""The GPU's way of calling a model, on ONNX Runtime's own CPU; TensorRT's options."""

from __future__ import annotations

import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from pfedmma_deploy.errors import DeviceError
from pfedmma_deploy.runtime import Bundle, Classifier, image_tower
from pfedmma_deploy.runtime.image_tower import GpuModel, run_on_cpu, tensorrt_options
from pfedmma_deploy.runtime.manifest import FileInfo, Manifest
from pfedmma_deploy.runtime.providers import open_session
from tests.export.sample import images

pytest_plugins = ["tests.export.fixtures"]

CLIENTS = np.array([2, 0, 1, 1, 2, 0, 0], np.int64)
STRENGTHS = np.array([1, 0.5, 0, 1.5, 0.25, 1, 0.75], np.float32)


class Watched:
    """A session that counts its calls and takes bound ones only."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.calls = 0

    def get_inputs(self) -> Any:
        return self._session.get_inputs()

    def io_binding(self) -> Any:
        return self._session.io_binding()

    def run(self, *_: object) -> None:
        raise AssertionError("not bound")

    def run_with_iobinding(self, binding: Any) -> None:
        self.calls += 1
        self._session.run_with_iobinding(binding)


@pytest.fixture(scope="module")
def session(bundle: Path) -> Any:
    return open_session(bundle / "vision_model.onnx", "cpu")


@pytest.fixture
def watched(session: Any) -> Watched:
    return Watched(session)


def expected(session: Any, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return run_on_cpu(session, list(pixels), CLIENTS[: len(pixels)], STRENGTHS[: len(pixels)])


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_the_same_features(session: Any, watched: Any, count: int) -> None:
    model = GpuModel(watched)
    for seed in range(3):
        pixels = images(count, seed)
        found = model(list(pixels), CLIENTS[:count], STRENGTHS[:count])
        np.testing.assert_allclose(found, expected(session, pixels), atol=1e-6)
    assert watched.calls == 3


def test_large_batches_go_in_parts(
    session: Any, watched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_tower, "LARGEST_BATCH", 4)
    pixels = images(7)
    found = GpuModel(watched)(list(pixels), CLIENTS, STRENGTHS)
    np.testing.assert_allclose(found, expected(session, pixels), atol=1e-6)
    assert watched.calls == 2


def test_many_threads_one_gpu(session: Any, watched: Any) -> None:
    model = GpuModel(watched)
    jobs = [images(1 + seed % 7, seed) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(
                lambda pixels: model(
                    list(pixels), CLIENTS[: len(pixels)], STRENGTHS[: len(pixels)]
                ),
                jobs,
            )
        )
    for pixels, features in zip(jobs, found, strict=True):
        np.testing.assert_allclose(features, expected(session, pixels), atol=1e-6)


def test_errors_come_back_from_the_thread(watched: Any) -> None:
    model = GpuModel(watched)
    with pytest.raises(Exception, match=r"(?i)indices|out of|bounds|range"):
        model(list(images(1)), np.array([99], np.int64), STRENGTHS[:1])
    assert model(list(images(1)), CLIENTS[:1], STRENGTHS[:1]).shape == (1, 24)


def test_a_classifier_with_a_gpu(
    bundle: Path, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the CPU stands in for the GPU, the answers are those of the CPU."""
    opened: list[dict[str, Any]] = []

    def open_instead(file: Path, device: str, **options: Any) -> Any:
        opened.append({"file": file.name, "device": device, **options})
        return session

    monkeypatch.setattr(image_tower, "resolve_device", lambda device: ("cuda", None))
    monkeypatch.setattr(image_tower, "open_session", open_instead)
    on_gpu = Classifier.load(bundle, "cuda", threads=2)
    assert opened == [
        {
            "file": "vision_model.onnx",
            "device": "cuda",
            "threads": 2,
            "options": None,
        }
    ]
    clients: list[str | int] = ["0", 0, "north"] * 3
    found = on_gpu.predict(images(9), clients, batch_size=4)
    for one, other in zip(
        found, Classifier.load(bundle, "cpu").predict(images(9), clients), strict=True
    ):
        assert one.client == other.client
        assert one.top[0].probability == pytest.approx(other.top[0].probability, abs=1e-5)


@pytest.fixture
def manifest(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    monkeypatch.setenv("PFEDMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(image_tower, "tensorrt_version", lambda: 101304)
    found = Bundle.open(bundle).manifest
    return replace(found, flavour="portable", files={"vision_model.onnx": FileInfo(1, "ab" * 32)})


def test_options(manifest: Manifest, tmp_path: Path) -> None:
    options = tensorrt_options(manifest)
    folder = (
        tmp_path / "cache/tensorrt" / (f"abababababababab-ort{onnxruntime.__version__}-trt101304")
    )
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert options == {
        "device_id": "0",
        "trt_fp16_enable": "False",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder),
        "trt_profile_min_shapes": "pixel_values:1x16x16x3,client:1,strength:1",
        "trt_profile_opt_shapes": "pixel_values:32x16x16x3,client:32,strength:32",
        "trt_profile_max_shapes": "pixel_values:256x16x16x3,client:256,strength:256",
    }
    assert tensorrt_options(replace(manifest, precision="fp16"))["trt_fp16_enable"] == "True"


def test_another_model_has_another_folder(manifest: Manifest) -> None:
    other = replace(manifest, files={"vision_model.onnx": FileInfo(1, "cd" * 32)})
    path = "trt_engine_cache_path"
    assert tensorrt_options(manifest)[path] != tensorrt_options(other)[path]


def test_without_caches_an_engine_has_a_place_of_its_own(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PFEDMMA_CACHE", "off")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = Path(tensorrt_options(manifest)["trt_engine_cache_path"])
    assert folder.is_dir() and folder.parents[1] == tmp_path


def test_a_cache_that_cannot_be_written(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(DeviceError, match=r"cannot be kept in .*cache.*: set PFEDMMA_CACHE"):
        tensorrt_options(manifest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flavour": "ort"}, "this bundle is fp32 in flavour ort: export it with --flavour"),
        ({"precision": "int8"}, "this bundle is int8 in flavour portable"),
    ],
)
def test_bundles_that_it_does_not_take(
    manifest: Manifest, change: dict[str, str], message: str
) -> None:
    tensorrt_options(manifest)
    with pytest.raises(DeviceError, match=message):
        tensorrt_options(replace(manifest, **change))  # type: ignore[arg-type]
