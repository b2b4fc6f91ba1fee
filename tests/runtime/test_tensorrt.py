"""TensorRT's options, by the bundle and the user's cache."""

from __future__ import annotations

import ctypes
import importlib
import stat
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest

from pfedmma_deploy.errors import DeviceError
from pfedmma_deploy.runtime import Bundle, tensorrt
from pfedmma_deploy.runtime.manifest import FileInfo, Manifest
from pfedmma_deploy.runtime.tensorrt import require_takes, tensorrt_options, tensorrt_version

pytest_plugins = ["tests.export.fixtures"]


@pytest.fixture
def manifest(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    monkeypatch.setenv("PFEDMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tensorrt, "tensorrt_version", lambda: 101304)
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
        "trt_profile_min_shapes": "pixel_values:1x16x16x3,client:1",
        "trt_profile_opt_shapes": "pixel_values:32x16x16x3,client:32",
        "trt_profile_max_shapes": "pixel_values:256x16x16x3,client:256",
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
    require_takes(manifest)
    with pytest.raises(DeviceError, match=message):
        require_takes(replace(manifest, **change))  # type: ignore[arg-type]


def test_the_library_is_looked_for_in_the_python_package_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    imported: list[str] = []

    def load(name: str) -> SimpleNamespace:
        if not imported:
            raise OSError(f"{name}: cannot open shared object file")
        return SimpleNamespace(getInferLibVersion=lambda: 101304)

    monkeypatch.setattr(ctypes, "CDLL", load)
    with monkeypatch.context() as patch:
        patch.setattr(importlib, "import_module", imported.append)
        assert tensorrt_version() == 101304
    assert imported == ["tensorrt"]

    def missing(name: str) -> None:
        raise ImportError(name)

    imported.clear()
    with monkeypatch.context() as patch:
        patch.setattr(importlib, "import_module", missing)
        with pytest.raises(OSError, match="nvinfer"):
            tensorrt_version()
