"""CPU, driver, CUDA libraries, and which execution providers of ONNX Runtime really run."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator, Mapping

from pfedmma_deploy.benchmark.environment import describe_environment
from pfedmma_deploy.report.doctor_check import Check
from pfedmma_deploy.report.doctor_packages import REINSTALL_RUNTIME, installed
from pfedmma_deploy.report.doctor_probe import CPU, Answer, Probe
from pfedmma_deploy.runtime.providers import usable_cores

__all__ = ["check_cpu", "check_driver", "check_libraries", "check_providers"]

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
LIBRARIES = {
    "cudart": "nvidia-cuda-runtime",
    "cublas": "nvidia-cublas",
    "cudnn": "nvidia-cudnn-cu13",
    "cufft": "nvidia-cufft",
    "curand": "nvidia-curand",
    "nvrtc": "nvidia-cuda-nvrtc",
}
"""What ONNX Runtime's CUDA provider links, and the distributions that bring it."""
NOT_TRIED = {"AzureExecutionProvider"}
"""Runs nothing here: it calls a service."""
TOLERANCE = 1e-2
"""Of a sum of 18; TensorFloat-32 and half precision are exact on ones."""
_MISSING = re.compile(r"(lib[\w.+-]+\.so[\w.]*|[\w-]+\.dll): cannot open shared object file")


def check_cpu() -> Iterator[Check]:
    """Model, vector extensions, cores, memory."""
    cores = usable_cores()
    machine = describe_environment(cores)
    memory = "" if machine.memory is None else f", {machine.memory / 1e9:.0f} GB of memory"
    extensions = f", {' '.join(machine.instructions)}" if machine.instructions else ""
    yield Check("cpu", True, f"{machine.cpu}, {cores} cores to use{memory}{extensions}")


def check_driver(device: str) -> Iterator[Check]:
    """NVIDIA's driver: GPUs, and the newest CUDA that it can run."""
    asked = device in ("cuda", "tensorrt")
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        yield Check(
            "driver",
            not asked,
            f"no NVIDIA driver ({name} cannot be loaded)",
            "install NVIDIA's driver (in a container: start it with --gpus all)" if asked else "",
            stops=asked,
            absent=not asked,
        )
        return
    code, version, count = driver.cuInit(0), ctypes.c_int(0), ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    if code == 0:
        code = driver.cuDeviceGetCount(ctypes.byref(count))
    newest = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    if code != 0 or count.value == 0:
        found = f"for {newest}, but it does not start (CUDA error {code}) or sees no GPU"
        yield Check("driver", False, found, "see what nvidia-smi says", stops=asked)
        return
    found = f"runs up to {newest}; {count.value} GPU: {', '.join(_gpus(driver, count.value))}"
    needed = (installed(LIBRARIES["cudart"]) or "").partition(".")[0]
    if needed.isdigit() and version.value // 1000 < int(needed):
        advice = f"update the driver: the libraries installed here are CUDA {needed}'s"
        yield Check("driver", False, found, advice, stops=asked)
    else:
        yield Check("driver", True, found)


def _gpus(driver: ctypes.CDLL, count: int) -> list[str]:
    names = []
    for device in range(count):
        text = ctypes.create_string_buffer(128)
        driver.cuDeviceGetName(text, 128, device)
        names.append(text.value.decode(errors="replace"))
    return names


def check_libraries(device: str) -> Iterator[Check]:
    """CUDA's libraries as Python packages; a system may have them elsewhere."""
    asked = device in ("cuda", "tensorrt")
    have = {name: installed(package) for name, package in LIBRARIES.items()}
    found = ", ".join(f"{name} {version or 'not from pip'}" for name, version in have.items())
    wanted = None in have.values() and asked
    # Not an error by itself: what counts is whether the provider runs.
    yield Check(
        "cuda libraries", True, found, "pip install 'onnxruntime-gpu[cuda,cudnn]'" if wanted else ""
    )


def check_providers(device: str) -> Iterator[Check]:
    """A tiny model on every provider that ONNX Runtime has, and the device that was asked for."""
    try:
        import onnxruntime

        from pfedmma_deploy.runtime import providers

        available = list(onnxruntime.get_available_providers())
    except Exception as error:  # a half-removed package raises AttributeError, too
        reason = f"{type(error).__name__}: {error}"
        found = f"ONNX Runtime cannot be imported ({reason})"
        yield Check("providers", False, found, REINSTALL_RUNTIME, stops=True)
        return
    problems = {CUDA: providers.cuda_problem(), TENSORRT: providers.tensorrt_problem()}
    names = [*dict.fromkeys([CPU, CUDA, TENSORRT, *available])]
    tried = [n for n in names if n in available and not problems.get(n) and n not in NOT_TRIED]
    probes = {name: Probe("run", name) for name in tried}
    needed = _needed(device)
    checks = {}
    for name in names:
        if name in probes:
            checks[name] = _ran(name, probes[name].finish(), stops=name in needed)
        elif name not in NOT_TRIED:
            checks[name] = _not_tried(name, problems, stops=name in needed)
    yield from checks.values()
    if device == "auto":
        runs_cuda = checks[CUDA].ok and CUDA in probes
        yield Check("device", checks[CPU].ok, f"auto takes {'cuda' if runs_cuda else 'cpu'}")
    else:
        works = all(checks[name].ok for name in needed)
        advice = "" if works else "see the advice above, or choose --device cpu"
        found = f"{device} {'works' if works else 'cannot be used'}"
        yield Check("device", works, found, advice, stops=not works)


def _needed(device: str) -> tuple[str, ...]:
    return {"cuda": (CUDA,), "tensorrt": (CUDA, TENSORRT)}.get(device, (CPU,))


def _not_tried(name: str, problems: Mapping[str, str | None], *, stops: bool) -> Check:
    """A provider that cannot run by what is known; that matters if it was asked for."""
    reason = problems.get(name) or "this ONNX Runtime does not have it"
    what, _, rest = reason.partition("; ")
    advice = rest if rest.startswith("run ") else "see the driver"
    found = f"cannot be used: {what}"
    return Check(name, not stops, found, advice if stops else "", stops, absent=not stops)


def _ran(name: str, answer: Answer, *, stops: bool) -> Check:
    """What running the tiny model showed."""
    line = next(iter(answer.lines), {})
    error, used = line.get("error"), line.get("provider")
    libraries = sorted(set(_MISSING.findall(f"{answer.stderr} {error}")))
    if not line:
        how = "hung" if answer.returncode is None else f"crashed (exit code {answer.returncode})"
        found = f"{how} while it ran a tiny model"
    elif libraries:
        found = f"does not load: {', '.join(libraries)} not found"
    elif error is not None:
        found = f"does not run: {str(error)[:300]}"
    elif used != name:
        found = f"a model for it ran on {used} instead"
    elif not line["largest_error"] < TOLERANCE:
        found = f"computes wrong numbers (off by {line['largest_error']:.2g} of 18)"
    else:
        return Check(name, True, "ran a tiny model, result right")
    advice = REINSTALL_RUNTIME if name != TENSORRT else "pip install 'tensorrt<11'"
    return Check(name, False, found, advice, stops)
