"""Each problem that `pfedmma doctor` knows, in an environment that is made to have it."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.report import doctor
from pfedmma_deploy.report.doctor import (
    MODEL,
    Answer,
    Check,
    check_imports,
    check_packages,
    guarded,
    probe,
    run_model,
)
from pfedmma_deploy.runtime import providers as runtime_providers
from pfedmma_deploy.runtime.providers import CPU, CUDA, TENSORRT

LINES = {
    "torch": {"module": "torch", "version": "2.15.0+cu132", "seconds": 1.0, "cuda": None},
    "torchvision": {"module": "torchvision", "version": "0.29.2+cu132", "seconds": 0.1},
    "open_clip": {"module": "open_clip", "version": "3.3.0", "seconds": 0.1},
}
RIGHT = {"largest_error": 0.0}


class FakeProbe:
    """Answers without a process: imports work, and providers do what `ran` says."""

    ran: dict[str, Answer] = {}  # noqa: RUF012

    def __call__(self, kind: str, *names: str) -> Answer:
        if kind == "import":
            return Answer(tuple(LINES[name] for name in names), 0, "")
        (name,) = names
        return self.ran.get(name, Answer(({"provider": name, **RIGHT},), 0, ""))


def by_name(checks: Any) -> dict[str, Check]:
    return {check.name: check for check in checks}


def have(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Distributions that are installed; underscores stand for hyphens."""
    found = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr(doctor, "installed", found.get)


def providers(
    monkeypatch: pytest.MonkeyPatch, *names: str, problem: str | None = None, **ran: Answer
) -> None:
    """ONNX Runtime with these providers, on a machine with CUDA's problem."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(names))
    monkeypatch.setattr(runtime_providers, "cuda_problem", lambda: problem)
    monkeypatch.setattr(runtime_providers, "tensorrt_problem", lambda: problem or "no TensorRT")
    monkeypatch.setattr(FakeProbe, "ran", {f"{k}ExecutionProvider": v for k, v in ran.items()})
    monkeypatch.setattr(doctor, "probe", FakeProbe())


def driver(monkeypatch: pytest.MonkeyPatch, *, start: int = 0, version: int = 13020) -> None:
    """A driver for CUDA `version` with one GPU, which starts with code `start`."""

    def answer(value: int) -> Any:
        def fill(pointer: Any) -> int:
            pointer._obj.value = value
            return 0

        return fill

    def name(text: Any, size: int, device: int) -> int:
        text.value = b"NVIDIA H200"
        return 0

    fake = SimpleNamespace(
        cuInit=lambda flags: start,
        cuDriverGetVersion=answer(version),
        cuDeviceGetCount=answer(1),
        cuDeviceGetName=name,
    )
    monkeypatch.setattr(ctypes, "CDLL", lambda library: fake)


@pytest.mark.parametrize(("device", "stops"), [("auto", False), ("cpu", False), ("cuda", True)])
def test_both_onnxruntimes(device: str, stops: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, onnxruntime="1.31.1", onnxruntime_gpu="1.31.1")
    check = by_name(check_packages(device))["onnxruntime packages"]
    assert (check.ok, check.stops) == (False, stops)
    assert check.found == (
        "onnxruntime 1.31.1 and onnxruntime-gpu 1.31.1: they share one module, and CUDA vanishes"
    )
    assert check.advice.startswith("pip uninstall -y onnxruntime onnxruntime-gpu && pip install")


def test_onnxruntime_without_cuda_is_enough_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, onnxruntime="1.31.1")
    assert by_name(check_packages("auto"))["onnxruntime packages"].ok
    check = by_name(check_packages("cuda"))["onnxruntime packages"]
    assert check.stops and check.found == "onnxruntime 1.31.1, which has no CUDA"


def test_missing_and_old_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["torch<3,>=2.15", "numpy>=2.1", "typer>=0.29", "x>1; extra == 'dev'"]
    wanted += ["gradio>=6; extra == 'demo'", "flwr>=1.41; extra == 'fleet'"]
    monkeypatch.setattr(metadata, "requires", lambda name: wanted)
    have(monkeypatch, pfedmma_deploy="1", numpy="1.26.4", typer="0.29.1", gradio="5")
    checks = by_name(check_packages("auto"))
    check = checks["packages"]
    assert check.stops and "torch MISSING, numpy 1.26.4, typer 0.29.1, gradio 5" in check.found
    # An extra need not be there, but where it is, it should fit.
    assert check.advice == "pip install 'torch<3,>=2.15' 'numpy>=2.1' 'gradio>=6'"
    runtime = checks["onnxruntime packages"]
    assert "neither onnxruntime-gpu nor" in runtime.found
    assert runtime.advice == "pip install 'pfedmma-deploy[cpu]', or [gpu] for NVIDIA GPUs"


def test_sources_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, onnxruntime="1.31.1")
    check = by_name(check_packages("auto"))["packages"]
    assert not check.ok and "runs from its sources" in check.found


def test_imports_that_fail() -> None:
    error = "RuntimeError: operator torchvision::nms does not exist"
    lines = (LINES["torch"], {"module": "torchvision", "error": error})
    answer = Answer(lines, -11, "noise\nSegmentation fault")
    first, second, third = check_imports(("torch", "torchvision", "open_clip"), answer)
    assert first.ok and first.found == "2.15.0+cu132 in 1.0 s, no CUDA device"
    assert second.stops and second.found == error and "one source" in second.advice
    assert third.found == "ended the process (exit code -11) Segmentation fault"
    assert "--force-reinstall open_clip_torch" in third.advice
    (hung,) = check_imports(("torch",), Answer((), None, ""))
    assert hung.stops and hung.found == "did not end in time"


def test_torch_may_be_absent() -> None:
    line = {"module": "torch", "error": "ModuleNotFoundError: No module named 'torch'"}
    (check,) = check_imports(("torch",), Answer((line,), 0, ""))
    assert check.ok and check.absent and not check.stops
    assert check.found == (
        "not installed; training and export need it: pip install 'pfedmma-deploy[train]'"
    )


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    (check,) = doctor.check_driver("auto")
    assert check.ok and check.absent and "no NVIDIA driver" in check.found
    (check,) = doctor.check_driver("cuda")
    assert check.stops and check.advice.startswith("install NVIDIA's driver")


def test_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, nvidia_cuda_runtime="13.2.86")
    driver(monkeypatch)
    (check,) = doctor.check_driver("cuda")
    assert check == Check("driver", True, "runs up to CUDA 13.2; 1 GPU: NVIDIA H200")
    driver(monkeypatch, version=12080)
    (check,) = doctor.check_driver("auto")
    assert (check.ok, check.stops) == (False, False) and "CUDA 12.8" in check.found
    assert check.advice == "update the driver: the libraries installed here are CUDA 13's"
    driver(monkeypatch, start=802)
    (check,) = doctor.check_driver("cuda")
    assert check.stops and "CUDA error 802" in check.found


def test_a_machine_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    providers(monkeypatch, CUDA, CPU, problem="no NVIDIA driver was found; install one")
    checks = by_name(doctor.check_providers("auto"))
    assert checks[CPU] == Check(CPU, True, "ran a tiny model, result right")
    assert checks[CUDA].ok and checks[CUDA].absent and "no NVIDIA driver" in checks[CUDA].found
    assert checks["device"] == Check("device", True, "auto takes cpu")
    checks = by_name(doctor.check_providers("cuda"))
    assert checks[CUDA].stops and checks[CUDA].advice == "see the driver"
    assert checks["device"].stops and checks["device"].found == "cuda cannot be used"
    providers(monkeypatch, CPU, problem="ONNX Runtime has no CUDA provider; run `pip x`")
    checks = by_name(doctor.check_providers("cuda"))
    assert checks[CUDA].advice == "run `pip x`"


LIBRARY = "libcurand.so.10: cannot open shared object file: No such file or directory"


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (
            Answer(({"provider": None, "error": "EPFail"},), 0, f"Failed to load {LIBRARY}"),
            "does not load: libcurand.so.10 not found",
        ),
        (Answer(({"provider": CPU, **RIGHT},), 0, ""), f"a model for it ran on {CPU} instead"),
        (
            Answer(({"provider": CUDA, "largest_error": 18.0},), 0, ""),
            "computes wrong numbers (off by 18 of 18)",
        ),
        (
            Answer(({"provider": CUDA, "largest_error": float("nan")},), 0, ""),
            "computes wrong numbers (off by nan of 18)",
        ),
        (Answer((), -6, "abort"), "crashed (exit code -6) while it ran a tiny model"),
        (Answer((), None, ""), "hung while it ran a tiny model"),
        (Answer(({"provider": None, "error": "no\nkernel"},), 0, ""), "does not run: no\nkernel"),
    ],
)
def test_cuda_that_does_not_run(
    answer: Answer, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    providers(monkeypatch, CUDA, CPU, CUDA=answer)
    for device, stops in (("auto", False), ("cuda", True)):
        checks = by_name(doctor.check_providers(device))
        check = checks[CUDA]
        assert (check.ok, check.stops, check.found) == (False, stops, found)
        assert "onnxruntime-gpu[cuda,cudnn]" in check.advice
        assert checks["device"].stops == stops
    assert by_name(doctor.check_providers("auto"))["device"].found == "auto takes cpu"


def test_cuda_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    providers(monkeypatch, TENSORRT, CUDA, CPU)
    checks = by_name(doctor.check_providers("auto"))
    assert checks["device"].found == "auto takes cuda"
    assert by_name(doctor.check_providers("cuda"))["device"].found == "cuda works"
    checks = by_name(doctor.check_providers("tensorrt"))
    assert checks[CUDA].ok and checks[TENSORRT].stops and checks["device"].stops


def test_half_an_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left where one of the two packages was removed: a module without its functions."""
    monkeypatch.delattr(onnxruntime, "get_available_providers")
    (check,) = doctor.check_providers("cpu")
    assert check.stops and "AttributeError" in check.found


def test_assets_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(check.ok for check in doctor.check_assets())
    (check,) = doctor.check_images()
    assert check.ok and ".jpg .png .webp" in check.found
    monkeypatch.setattr(doctor, "ASSETS", ("pfedmma-tiny/other.safetensors",))
    (check,) = doctor.check_assets()
    assert check.stops and check.advice == "install pfedmma-deploy again"


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("PFEDMMA_CACHE", str(tmp_path / "cache"))
    for name in ("a", "b"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "manifest.json").write_bytes(b"x" * 600)
    checks = by_name(doctor.check_places(tmp_path / "runs", tmp_path / "exports"))
    assert checks["runs"].found == f"{tmp_path / 'runs'}: 2 entries, 1 kB"
    assert checks["exports"].absent and "`pfedmma export` makes them" in checks["exports"].found
    assert checks["cache of open_clip"].found.startswith(str(tmp_path / "hub"))
    assert checks["cache of tensorrt"].found.startswith(str(tmp_path / "cache" / "tensorrt"))
    monkeypatch.setenv("PFEDMMA_CACHE", "off")
    monkeypatch.setattr(doctor, "LEAST_FREE", float("inf"))
    checks = by_name(doctor.check_places(tmp_path / "runs", tmp_path / "exports"))
    assert checks["cache of index"].found == "switched off by $PFEDMMA_CACHE"
    assert not checks["disk"].ok and checks["disk"].advice.startswith("make room")


def test_a_check_that_fails_is_a_finding() -> None:
    def look() -> Any:
        yield Check("first", True, "fine")
        raise ZeroDivisionError("by\nzero")

    first, second = guarded("images", look)
    assert first.ok
    assert not second.ok and second.name == "images"
    assert second.found == "could not be looked at (ZeroDivisionError: by zero)"


def test_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    providers(monkeypatch, CPU, problem="none; add one")
    monkeypatch.setattr(doctor, "probe", FakeProbe())
    found = doctor.diagnose("cpu", runs=tmp_path / "runs", exports=tmp_path / "exports")
    names = [check.name for check in found.checks]
    assert found.works and not found.problems and len(names) == len(set(names))
    place = names.index("onnxruntime packages")
    assert names[place + 1 : place + 4] == [
        "import torch",
        "import torchvision",
        "import open_clip",
    ]

    def broken() -> Any:
        raise OSError("unreadable")

    monkeypatch.setattr(doctor, "check_images", broken)
    found = doctor.diagnose("cuda", runs=tmp_path / "runs", exports=tmp_path / "exports")
    assert not found.works
    assert "could not be looked at" in by_name(found.checks)["images"].found
    with pytest.raises(UsageError, match="Device 'tpu' is unknown: expected auto, cpu, cuda"):
        doctor.diagnose("tpu")


def test_devices_and_names_are_the_runtimes() -> None:
    assert doctor.DEVICES == runtime_providers.DEVICES
    assert (doctor.CUDA, doctor.TENSORRT) == (CUDA, TENSORRT)


PROGRAM = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"numpy", "torch", "onnxruntime", "PIL", "packaging"}:
            raise ImportError(f"{name} is broken")

sys.meta_path.insert(0, Blocked())
from pfedmma_deploy.report import doctor

doctor.IMPORTED = ()
found = doctor.diagnose("cpu")
print(*(check.name for check in found.problems), sep=",")
"""


def test_it_works_where_nearly_nothing_does(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout == "packages,images,providers\n"


# Real processes: imports that crash or hang, and the tiny model on the CPU.


def test_the_tiny_model_is_what_its_comment_says() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("MatMul", ["c", "m"], ["y"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 2, 2])],
        [
            numpy_helper.from_array(np.ones((2, 1, 3, 3), np.float32), "w"),
            numpy_helper.from_array(np.ones((2, 2), np.float32), "m"),
        ],
    )
    opsets = [helper.make_opsetid("", 18)]
    assert onnx.load_from_string(MODEL) == helper.make_model(
        graph, opset_imports=opsets, ir_version=8
    )


def test_the_cpu_runs_it() -> None:
    answer = probe("run", "CPUExecutionProvider")
    assert answer.returncode == 0, answer.stderr
    assert answer.lines == ({"provider": "CPUExecutionProvider", "largest_error": 0.0},)


def test_a_provider_that_is_not_there() -> None:
    found = run_model("NoSuchExecutionProvider")
    assert found["provider"] is None and "NoSuchExecutionProvider" in found["error"]


def test_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fine.py").write_text("print('hello'); __version__ = '1'")
    (tmp_path / "broken.py").write_text("raise RuntimeError('operator torchvision::nms')")
    (tmp_path / "leaves.py").write_text("import sys; sys.exit('no')")
    (tmp_path / "crash.py").write_text("import os; os.write(2, b'gone'); os._exit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    answer = probe("import", "fine", "broken", "leaves", "absent", "crash", "fine")
    fine, broken, leaves, absent = answer.lines
    assert (fine["module"], fine["version"]) == ("fine", "1")
    assert broken["error"] == "RuntimeError: operator torchvision::nms"
    assert leaves["error"] == "SystemExit: no"
    assert absent["error"] == "ModuleNotFoundError: No module named 'absent'"
    assert answer.returncode == 3 and answer.stderr.endswith("gone")


def test_one_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hangs.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    answer = probe("import", "hangs", timeout=0.2)
    assert answer.returncode is None and answer.lines == ()


def test_the_current_folder_does_not_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchy.py").write_text("")
    monkeypatch.chdir(tmp_path)
    (line,) = probe("import", "torchy").lines
    assert "No module named 'torchy'" in line["error"]
