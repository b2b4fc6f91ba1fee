"""`cuda` means CUDA: what cannot be had is said, never replaced in silence; real cores."""

from __future__ import annotations

import ctypes
import importlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from pfedmma_deploy.errors import BundleError, DeviceError, UsageError
from pfedmma_deploy.runtime import Classifier, image_tower, providers
from pfedmma_deploy.runtime.providers import (
    cuda_problem,
    open_session,
    resolve_device,
    tensorrt_problem,
    tensorrt_version,
    usable_cores,
)

pytest_plugins = ["tests.export.fixtures"]


def driver(monkeypatch: pytest.MonkeyPatch, start: int = 0, gpus: int = 1) -> None:
    """A machine with an NVIDIA driver that starts with code `start` and sees `gpus` devices."""

    def count(pointer: Any) -> int:
        pointer._obj.value = gpus
        return 0

    fake = SimpleNamespace(cuInit=lambda flags: start, cuDeviceGetCount=count)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: fake)
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)


def test_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
        assert "has no CUDA provider; run `pip uninstall" in str(cuda_problem())
    with monkeypatch.context() as patch:
        driver(patch)
        assert cuda_problem() is None
        driver(patch, start=100)
        assert "does not start (CUDA error 100)" in str(cuda_problem())
        driver(patch, gpus=0)
        assert "sees no GPU" in str(cuda_problem())

        def missing(name: str) -> None:
            raise OSError(name)

        patch.setattr(ctypes, "CDLL", missing)
        assert "no NVIDIA driver was found" in str(cuda_problem())


def test_resolving(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu") == ("cpu", None)
    monkeypatch.setattr(providers, "cuda_problem", lambda: None)
    assert resolve_device("auto") == resolve_device("cuda") == ("cuda", None)
    monkeypatch.setattr(providers, "cuda_problem", lambda: "it is missing")
    assert resolve_device("auto") == ("cpu", "it is missing")
    with pytest.raises(
        DeviceError, match=r"'cuda' cannot be used: it is missing\. Or choose --device cpu"
    ):
        resolve_device("cuda")
    with pytest.raises(
        UsageError, match="Device 'tpu' is unknown: expected auto, cpu, cuda, tensorrt"
    ):
        resolve_device("tpu")


class FallenBack:
    """What ONNX Runtime hands out when its CUDA provider does not load: a CPU session."""

    def __init__(self, path: str, settings: Any, **options: Any) -> None:
        self.settings, self.options = settings, options

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


def test_a_silent_fallback_is_an_error(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", FallenBack)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcudnn.so.9"))
    monkeypatch.setattr(image_tower, "resolve_device", lambda device: ("cuda", None))
    with pytest.raises(
        DeviceError,
        match=r"vision_model\.onnx was to run on CUDAExecutionProvider, ONNX Runtime chose "
        r"CPUExecutionProvider: Failed to load libcudnn\.so\.9\. Run `pip",
    ):
        Classifier.load(bundle, "cuda")


def test_auto_goes_on_with_the_cpu_and_says_why(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", FallenBack)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(image_tower, "resolve_device", lambda device: ("cuda", None))
    classifier = Classifier.load(bundle, "auto")
    assert (classifier.device, classifier.provider) == ("cpu", "CPUExecutionProvider")
    assert "its libraries did not load" in str(classifier.fallback_reason)


def test_tensorrt_needs_all_that_cuda_needs_and_its_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(providers, "cuda_problem", lambda: "no driver")
    with pytest.raises(DeviceError, match=r"Device 'tensorrt' cannot be used: no driver\. Or"):
        resolve_device("tensorrt")
    monkeypatch.setattr(providers, "cuda_problem", lambda: None)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert "has no TensorRT provider" in str(tensorrt_problem())
    available = ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)

    def missing() -> int:
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(providers, "tensorrt_version", missing)
    with pytest.raises(
        DeviceError,
        match=r"TensorRT 10 cannot be loaded \(libnvinfer\.so\.10: .*\); "
        r"run `pip install 'tensorrt<11'`\. Or choose --device cpu",
    ):
        resolve_device("tensorrt")
    monkeypatch.setattr(providers, "tensorrt_version", lambda: 101304)
    assert resolve_device("tensorrt") == ("tensorrt", None)


def test_sessions_get_threads_that_sleep_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[FallenBack] = []

    class Session(FallenBack):
        def __init__(self, path: str, settings: Any, **options: Any) -> None:
            super().__init__(path, settings, **options)
            opened.append(self)

        def get_providers(self) -> list[str]:
            first = self.options["providers"][0]
            return [first if isinstance(first, str) else first[0]]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(providers, "usable_cores", lambda: 5)
    open_session(Path("m.onnx"), "cpu")
    open_session(Path("m.onnx"), "tensorrt", threads=3, options={"a": "1"})
    plain, with_options = opened
    assert plain.options["providers"] == ["CPUExecutionProvider"]
    assert plain.settings.intra_op_num_threads == 5
    assert plain.settings.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert with_options.settings.intra_op_num_threads == 3
    assert with_options.options["providers"] == [
        ("TensorrtExecutionProvider", {"a": "1"}),
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]
    assert with_options.options["enable_fallback"] == 0


def test_a_provider_that_does_not_take_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("cannot write the engine.")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    with pytest.raises(
        DeviceError,
        match=r"^TensorrtExecutionProvider does not take m\.onnx with device_id=0: cannot write "
        r"the engine\. Choose --device cuda, or --device cpu\.$",
    ):
        open_session(Path("m.onnx"), "tensorrt", options={"device_id": "0"})


def test_files_that_are_no_models(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"\x08nonsense")
    with pytest.raises(BundleError, match=r"ONNX Runtime [\d.]+ cannot open .*model\.onnx"):
        open_session(file, "cpu")


def test_cpu_and_auto_report_what_they_use(bundle: Path) -> None:
    on_cpu = Classifier.load(bundle, "cpu")
    assert (on_cpu.device, on_cpu.provider) == ("cpu", "CPUExecutionProvider")
    assert on_cpu.fallback_reason is None
    auto = Classifier.load(bundle)
    assert auto.provider == ("CUDA" if auto.device == "cuda" else "CPU") + "ExecutionProvider"
    assert (auto.fallback_reason is None) == (auto.device == "cuda")


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


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four cores of two hyper-threads, all usable, without limits."""
    for number in range(8):
        topology = tmp_path / f"cpu/cpu{number}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{number % 4},{number % 4 + 4}\n")
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "own").write_text("0::/shop/job\n")
    monkeypatch.setattr(providers, "CPUS", tmp_path / "cpu")
    monkeypatch.setattr(providers, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(providers, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_hyper_threads_count_once(machine: Path) -> None:
    assert usable_cores() == 4


@pytest.mark.parametrize(("mask", "cores"), [({0}, 1), ({0, 4}, 1), ({0, 1, 4}, 2), ({9}, 1)])
def test_the_mask_counts(
    machine: Path, monkeypatch: pytest.MonkeyPatch, mask: set[int], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: mask)
    assert usable_cores() == cores


@pytest.mark.parametrize(
    ("limits", "cores"),
    [
        ({"shop/job": "max 100000"}, 4),
        ({"shop/job": "150000 100000"}, 2),
        ({"shop/job": "300000 100000", "shop": "50000 100000"}, 1),
        ({"": "200000 100000"}, 2),  # as seen inside a container
        ({"shop/job": "800000 100000"}, 4),
        ({"shop/job": "nonsense"}, 4),
    ],
)
def test_quotas(machine: Path, limits: dict[str, str], cores: int) -> None:
    for group, text in limits.items():
        write(machine / "cgroup" / group / "cpu.max", text + "\n")
    assert usable_cores() == cores


def test_quotas_of_the_first_version(machine: Path) -> None:
    write(machine / "own", "4:memory:/\n3:cpu,cpuacct:/docker/1\n")
    write(machine / "cgroup/cpu/cpu.cfs_quota_us", "200000\n")
    write(machine / "cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert usable_cores() == 2
    write(machine / "cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    assert usable_cores() == 4


def test_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


def test_no_control_groups(machine: Path) -> None:
    (machine / "own").unlink()
    assert usable_cores() == 4
