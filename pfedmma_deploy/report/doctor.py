"""`pfedmma doctor`: is this installation well, and what to do where it is not.

Every check stands alone: one that fails is a finding and hides no other. Nothing that may be broken
is imported here. What can crash or take long is probed in a process of its own, which runs this
module with `import torch torchvision` or `run CUDAExecutionProvider` and prints a JSON object a
line.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import importlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pfedmma_deploy import __version__
from pfedmma_deploy.caches import KINDS, VARIABLE, cache_folder, folder_size
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.system import describe_environment
from pfedmma_deploy.system import package_version as installed

DEVICES = ("auto", "cpu", "cuda", "tensorrt")
"""As in `runtime.providers`, which needs numpy."""
CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))
NEEDED = {"cuda": (CUDA,), "tensorrt": (CUDA, TENSORRT)}
"""Execution providers without which a device cannot be used; else the CPU's."""
IMPORTED = ("torch", "torchvision", "open_clip")
"""What training and export import, in the order in which a failure is most telling."""
ASSETS = (
    "pfedmma-tiny/model.safetensors",
    "pfedmma-tiny/pfedmma-tiny.json",
    "samples/cifar10-sample.zip",
    "samples/domains-sample.zip",
)
EXTRAS = ("train", "demo", "data", "fleet")
"""Of the package, beside the two kinds of ONNX Runtime, which have a check of their own."""
LEAST_FREE = 2e9  # bytes: a run and its bundle of the largest usual backbones
REINSTALL_RUNTIME = (
    "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'"
)
REINSTALL_TORCH = (
    "pip uninstall -y torch torchvision && pip install torch torchvision (both from one source: "
    "the same index, the same CUDA build)"
)
# y = MatMul(Conv(x, w), m), which needs cuDNN and cuBLAS on CUDA: x [1, 1, 4, 4], w [2, 1, 3, 3]
# and m [2, 2] are ones, so that every number of y [1, 2, 2, 2] is 9 + 9. Opset 18.
MODEL = base64.b64decode(
    "CAg62gEKDwoBeAoBdxIBYyIEQ29udgoRCgFjCgFtEgF5IgZNYXRNdWwSBHRpbnkqVwgCCAEIAwgDEAFCAXdKSAAA"
    "gD8AAIA/AACAPwAAgD8AAIA/AACAPwAAgD8AAIA/AACAPwAAgD8AAIA/AACAPwAAgD8AAIA/AACAPwAAgD8AAIA/"
    "AACAPyobCAIIAhABQgFtShAAAIA/AACAPwAAgD8AAIA/WhsKAXgSFgoUCAESEAoCCAEKAggBCgIIBAoCCARiGwoB"
    "eRIWChQIARIQCgIIAQoCCAIKAggCCgIIAkIECgAQEg=="
)


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, whether it is well, what was found and what to do about it."""

    name: str
    ok: bool
    found: str
    advice: str = ""
    stops: bool = False
    """Whether something that was asked for cannot work: the exit code is then 1."""
    absent: bool = False
    """Whether it is not there, and nobody asked for it."""

    def to_dict(self) -> dict[str, str | bool]:
        """The stable keys of `pfedmma doctor --json`."""
        return {"name": self.name, "ok": self.ok, "found": self.found, "advice": self.advice}


@dataclass(frozen=True)
class Diagnosis:
    """All findings for one device."""

    device: str
    checks: tuple[Check, ...]

    @property
    def works(self) -> bool:
        """Whether all that was asked for can work."""
        return not any(check.stops for check in self.checks)

    @property
    def problems(self) -> tuple[Check, ...]:
        """The findings that are not well."""
        return tuple(check for check in self.checks if not check.ok)

    def to_dict(self) -> dict[str, Any]:
        """The stable keys of `pfedmma doctor --json`."""
        checks = [check.to_dict() for check in self.checks]
        return {"device": self.device, "works": self.works, "checks": checks}


def diagnose(
    device: str = "auto",
    *,
    runs: Path = Path("runs"),
    exports: Path = Path("exports"),
    progress: Progress | None = None,
) -> Diagnosis:
    """Look at the installation and the machine; takes as long as `import open_clip`.

    `device` is what is to work; runs and bundles are written to `runs` and `exports`. Raises
    `UsageError` for an unknown device.
    """
    if device not in DEVICES:
        raise UsageError(f"Device {device!r} is unknown: expected {', '.join(DEVICES)}.")
    note = "Importing torch, and running a tiny model on each execution provider ..."
    (progress or Silent()).note(note)
    looks: dict[str, Callable[[], Iterable[Check]]] = {
        "images": check_images,
        "embedded files": check_assets,
        "cpu": check_cpu,
        "driver": lambda: check_driver(device),
        "providers": lambda: check_providers(device),
        "places": lambda: check_places(runs, exports),
    }
    with ThreadPoolExecutor(1) as pool:
        # Started first: everything else is looked at meanwhile.
        imports = pool.submit(probe, "import", *IMPORTED)
        packages = guarded("packages", lambda: check_packages(device))
        rest = [check for name, look in looks.items() for check in guarded(name, look)]
        loaded = guarded("imports", lambda: check_imports(IMPORTED, imports.result()))
    return Diagnosis(device, (*packages, *loaded, *rest))


def guarded(name: str, look: Callable[[], Iterable[Check]]) -> list[Check]:
    """The findings of `look`; a failure of it is a finding under `name`, never an exception."""
    checks = []
    try:
        for check in look():
            checks.append(check)  # what came before a failure stays
    except Exception as error:  # whatever a broken installation raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        advice = "install the packages again in a fresh environment; if this stays, report it"
        checks.append(judged(name, f"could not be looked at ({reason})", advice, stops=False))
    return checks


def judged(
    name: str, found: str, advice: str = "", *, stops: bool = True, absent: bool = False
) -> Check:
    """A finding that is well unless there is something to advise."""
    return Check(name, not advice, found, advice, stops and advice != "", absent)


def check_packages(device: str) -> Iterator[Check]:
    """Versions of what this package needs, and the ONNX Runtime clash."""
    yield judged("python", f"{platform.python_version()} on {platform.platform(terse=True)}")
    yield from guarded("packages", _requirements)
    yield from guarded("onnxruntime packages", lambda: _onnxruntime(device))


def _requirements() -> Iterator[Check]:
    """Everything that the package's own metadata ask for on this platform."""
    from packaging.requirements import Requirement

    if installed("pfedmma-deploy") is None:
        found = f"pfedmma-deploy {__version__} runs from its sources: nothing says what it needs"
        yield judged("packages", found, "pip install . (in the folder of the sources)", stops=False)
        return
    have, wrong = [], []
    for wanted in map(Requirement, metadata.requires("pfedmma-deploy") or ()):
        marker, version = wanted.marker, installed(wanted.name)
        if marker is not None and not marker.evaluate({"extra": ""}):
            # Nobody need have an extra, but what is there should fit.
            known = any(marker.evaluate({"extra": extra}) for extra in EXTRAS)
            if version is None or not known:
                continue
        have.append(f"{wanted.name} {version or 'MISSING'}")
        fits = version is not None and wanted.specifier.contains(version, prereleases=True)
        # What is said of ONNX Runtime and its clash is a check of its own.
        if not fits and not wanted.name.startswith("onnxruntime"):
            wrong.append(f"'{str(wanted).partition(';')[0].strip()}'")
    advice = f"pip install {' '.join(wrong)}" if wrong else ""
    yield judged("packages", f"pfedmma-deploy {__version__}; {', '.join(have)}", advice)


def _onnxruntime(device: str) -> Iterator[Check]:
    """`onnxruntime` and `onnxruntime-gpu` are two distributions of one module."""
    versions = {name: installed(name) for name in ("onnxruntime", "onnxruntime-gpu")}
    have = " and ".join(f"{name} {version}" for name, version in versions.items() if version)
    problem, stops, install = "", True, REINSTALL_RUNTIME
    if all(versions.values()):
        problem, stops = ": they share one module, and CUDA vanishes", device in NEEDED
    elif not have:
        problem = "neither onnxruntime-gpu nor onnxruntime is installed"
        install = "pip install 'pfedmma-deploy[cpu]', or [gpu] for NVIDIA GPUs"
    elif device in NEEDED and not versions["onnxruntime-gpu"]:
        problem = ", which has no CUDA"
    advice = install if problem else ""
    yield judged("onnxruntime packages", f"{have}{problem}", advice, stops=stops)


def check_imports(modules: Sequence[str], answer: Answer) -> Iterator[Check]:
    """What importing the modules one after the other brought, each its own finding."""
    lines = {line.get("module"): line for line in answer.lines}
    for module in modules:
        line = lines.get(module, {})
        if "version" in line:
            sees = "" if module != "torch" else f", {line.get('cuda') or 'no CUDA device'}"
            yield judged(f"import {module}", f"{line['version']} in {line['seconds']:.1f} s{sees}")
            continue
        error = " ".join(str(line.get("error", "")).split())[:300]
        if not line and answer.returncode is None:
            error = "did not end in time"
        elif not line:
            last = answer.stderr.strip().splitlines()[-1:] or [""]
            error = f"ended the process (exit code {answer.returncode}) {last[0]}".strip()
        package = {"open_clip": "open_clip_torch"}.get(module, module)
        advice = f"pip install --force-reinstall {package}"
        if "torchvision::nms" in error or (module == "torchvision" and "CUDA" in error):
            # Builds for different devices: the usual end of installing one of the pair alone.
            advice = REINSTALL_TORCH
        elif f"No module named '{module}'" in error:
            found = (
                "not installed; training and export need it: pip install 'pfedmma-deploy[train]'"
            )
            yield judged(f"import {module}", found, absent=True)
            continue
        yield judged(f"import {module}", error, advice)
        if not line:
            return  # the process is gone: nothing behind it was tried


def check_cpu() -> Iterator[Check]:
    """Model, vector extensions, cores, memory."""
    from pfedmma_deploy.runtime.providers import usable_cores

    cores = usable_cores()
    machine = describe_environment(cores)
    memory = "" if machine.memory is None else f", {machine.memory / 1e9:.0f} GB of memory"
    extensions = f", {' '.join(machine.instructions)}" if machine.instructions else ""
    yield judged("cpu", f"{machine.cpu}, {cores} cores to use{memory}{extensions}")


def check_driver(device: str) -> Iterator[Check]:
    """NVIDIA's driver: GPUs, and the newest CUDA that it can run."""
    asked = device in NEEDED
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        found = f"no NVIDIA driver ({name} cannot be loaded)"
        advice = "install NVIDIA's driver (in a container: start it with --gpus all)"
        yield judged("driver", found, advice if asked else "", absent=not asked)
        return
    code, version, count = driver.cuInit(0), ctypes.c_int(0), ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    if code == 0:
        code = driver.cuDeviceGetCount(ctypes.byref(count))
    newest = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    if code != 0 or count.value == 0:
        found = f"for {newest}, but it does not start (CUDA error {code}) or sees no GPU"
        yield judged("driver", found, "see what nvidia-smi says", stops=asked)
        return
    gpus = []
    for gpu in range(count.value):
        text = ctypes.create_string_buffer(128)
        driver.cuDeviceGetName(text, 128, gpu)
        gpus.append(text.value.decode(errors="replace"))
    found = f"runs up to {newest}; {count.value} GPU: {', '.join(gpus)}"
    needed = (installed("nvidia-cuda-runtime") or "").partition(".")[0]
    advice = ""
    if needed.isdigit() and version.value // 1000 < int(needed):
        advice = f"update the driver: the libraries installed here are CUDA {needed}'s"
    yield judged("driver", found, advice, stops=asked)


def check_providers(device: str) -> Iterator[Check]:
    """A tiny model on every provider that ONNX Runtime has, and the device that was asked for."""
    try:
        import onnxruntime

        from pfedmma_deploy.runtime import providers

        available = set(onnxruntime.get_available_providers())
    except Exception as error:  # a half-removed package raises AttributeError, too
        found = f"ONNX Runtime cannot be imported ({type(error).__name__}: {error})"
        yield judged("providers", found, REINSTALL_RUNTIME)
        return
    available.discard("AzureExecutionProvider")  # runs nothing here: it calls a service
    problems = {CUDA: providers.cuda_problem(), TENSORRT: providers.tensorrt_problem()}
    names = [CPU, CUDA, TENSORRT, *sorted(available - {CPU, CUDA, TENSORRT})]
    tried = [name for name in names if name in available and not problems.get(name)]
    needed = NEEDED.get(device, (CPU,))
    with ThreadPoolExecutor() as pool:
        answers = dict(zip(tried, pool.map(lambda name: probe("run", name), tried), strict=True))
    checks = {}
    for name in names:
        asked = name in needed
        if name in answers:
            checks[name] = _ran(name, answers[name], stops=asked)
            continue
        # By what is known it cannot run, which matters if it was asked for.
        reason = problems.get(name) or "this ONNX Runtime does not have it"
        what, _, rest = reason.partition("; ")
        advice = rest if rest.startswith("run ") else "see the driver"
        found = f"cannot be used: {what}"
        checks[name] = judged(name, found, advice if asked else "", absent=not asked)
    yield from checks.values()
    if device == "auto":
        chosen = "cuda" if CUDA in answers and checks[CUDA].ok else "cpu"
        yield Check("device", checks[CPU].ok, f"auto takes {chosen}")
    elif all(checks[name].ok for name in needed):
        yield judged("device", f"{device} works")
    else:
        advice = "see the advice above, or choose --device cpu"
        yield judged("device", f"{device} cannot be used", advice)


def _ran(name: str, answer: Answer, *, stops: bool) -> Check:
    """What running the tiny model showed."""
    line = next(iter(answer.lines), {})
    error, used = line.get("error"), line.get("provider")
    missing = re.compile(r"(lib[\w.+-]+\.so[\w.]*|[\w-]+\.dll): cannot open shared object file")
    libraries = sorted(set(missing.findall(f"{answer.stderr} {error}")))
    if not line:
        how = "hung" if answer.returncode is None else f"crashed (exit code {answer.returncode})"
        found = f"{how} while it ran a tiny model"
    elif libraries:
        found = f"does not load: {', '.join(libraries)} not found"
    elif error is not None:
        found = f"does not run: {str(error)[:300]}"
    elif used != name:
        found = f"a model for it ran on {used} instead"
    elif not line["largest_error"] < 1e-2:  # TensorFloat-32 and fp16 are exact on ones
        found = f"computes wrong numbers (off by {line['largest_error']:.2g} of 18)"
    else:
        return judged(name, "ran a tiny model, result right")
    advice = REINSTALL_RUNTIME if name != TENSORRT else "pip install 'tensorrt<11'"
    return judged(name, found, advice, stops=stops)


def check_images() -> Iterator[Check]:
    """Formats that Pillow can read here; the wheels have all, a build of one's own may not."""
    from PIL import Image, features

    from pfedmma_deploy.data.images import IMAGE_FORMATS, IMAGE_SUFFIXES

    Image.init()
    codecs = {"JPEG": "jpg", "PNG": "zlib", "WEBP": "webp"}
    missing = []
    for name in IMAGE_FORMATS:
        if name not in Image.OPEN or (name in codecs and not features.check(codecs[name])):
            missing.append(name)
    if missing:
        advice = "pip install --force-reinstall pillow"
        yield judged("images", f"cannot read {', '.join(missing)}", advice)
    else:
        turbo = ", libjpeg-turbo" if features.check_feature("libjpeg_turbo") else ""
        yield judged("images", f"{' '.join(IMAGE_SUFFIXES)}{turbo}")


def check_assets() -> Iterator[Check]:
    """The embedded backbone and samples."""
    import pfedmma_deploy

    folder = Path(pfedmma_deploy.__file__).parent / "assets"
    missing = [name for name in ASSETS if not (folder / name).is_file()]
    if missing:
        found = f"{', '.join(missing)} missing in {folder}"
        yield judged("embedded files", found, "install pfedmma-deploy again")
    else:
        size = _size(sum((folder / name).stat().st_size for name in ASSETS))
        found = f"pfedmma-tiny, cifar10-sample, domains-sample; {size} in {folder}"
        yield judged("embedded files", found)


def check_places(runs: Path, exports: Path) -> Iterator[Check]:
    """Caches, runs and bundles with their sizes, and the space that is left."""
    yield _place("cache of open_clip", _hub_cache(), "weights that --pretrained names", "*/")
    yield _place("cache of OpenAI's weights", Path.home() / ".cache" / "clip", "", "*")
    for kind, what in KINDS.items():
        folder = cache_folder(kind)
        if folder is None:
            yield Check(f"cache of {kind}", True, f"switched off by ${VARIABLE}", absent=True)
        else:
            yield _place(f"cache of {kind}", folder, what, "*")
    yield _place("runs", runs, "`pfedmma train` makes them", "*/manifest.json")
    yield _place("exports", exports, "`pfedmma export` makes them", "*/manifest.json")
    folder = runs.resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    found, advice = f"{_size(free)} free in {folder}", ""
    if not os.access(folder, os.W_OK):
        found = f"{folder} cannot be written to"
        advice = "work in a folder of your own, or name one with --out"
    elif free < LEAST_FREE:
        advice = "make room, or write to another disk with --out"
    yield judged("disk", found, advice, stops=False)


def _hub_cache() -> Path:
    """Where open_clip's downloads go, by the rules of huggingface_hub."""
    if folder := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(folder).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser() / "hub"


def _place(name: str, folder: Path, what: str, pattern: str) -> Check:
    """A folder with the number of its entries, and the size of all files below."""
    if not folder.is_dir():
        found = f"{folder}: not there yet{f' ({what})' if what else ''}"
        return Check(name, True, found, absent=True)
    count = len(list(folder.glob(pattern)))
    entries = "1 entry" if count == 1 else f"{count} entries"
    size = _size(folder_size(folder)[1])
    return Check(name, True, f"{folder.resolve()}: {entries}, {size}")


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


@dataclass(frozen=True)
class Answer:
    """What a probe printed before it ended."""

    lines: tuple[dict[str, Any], ...]
    returncode: int | None
    """None where it was still at work when its time was up."""
    stderr: str


def probe(kind: str, *names: str, timeout: float = 180) -> Answer:
    """Run this module as a program, at most `timeout` seconds.

    torch from a cold disk takes 20; TensorRT compiles even a tiny model.
    """
    # -P: without the current folder, whose files could stand in for packages.
    command = [sys.executable, "-P", "-m", "pfedmma_deploy.report.doctor", kind, *names]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
        )
        returncode, stdout, stderr = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as late:
        returncode, stdout, stderr = None, late.stdout or b"", late.stderr or b""
    lines = []
    for line in stdout.splitlines():
        with contextlib.suppress(ValueError):  # a library may print lines of its own
            value = json.loads(line)
            if isinstance(value, dict):
                lines.append(value)
    return Answer(tuple(lines), returncode, stderr.decode(errors="replace"))


def import_module(name: str) -> dict[str, Any]:
    """In a probe: import a module; its version, and for torch what it sees of CUDA."""
    started = time.perf_counter()
    try:
        module = importlib.import_module(name)
    except BaseException as error:  # a broken package may even call sys.exit
        return {"module": name, "error": f"{type(error).__name__}: {error}"}
    found: dict[str, Any] = {"module": name, "version": str(getattr(module, "__version__", "?"))}
    if name == "torch":
        cuda = module.cuda.is_available()
        found["cuda"] = module.cuda.get_device_name(0) if cuda else None
    return {**found, "seconds": time.perf_counter() - started}


def run_model(provider: str) -> dict[str, Any]:
    """In a probe: run the tiny model on `provider` alone, never on the CPU instead."""
    remarks = io.StringIO()
    try:
        import numpy as np
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if provider != CPU:
            with contextlib.redirect_stdout(remarks):
                onnxruntime.preload_dlls()
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        session = onnxruntime.InferenceSession(
            MODEL, options, providers=[provider], enable_fallback=0
        )
        found = session.run(None, {"x": np.ones((1, 1, 4, 4), np.float32)})[0]
    except BaseException as error:  # ONNX Runtime's exceptions have no common base
        text = f"{remarks.getvalue()} {type(error).__name__}: {error}"
        return {"provider": None, "error": " ".join(text.split())}
    largest = float(np.abs(found - 18).max())
    return {"provider": session.get_providers()[0], "largest_error": largest}


def main(arguments: Sequence[str]) -> None:
    """The probe: do what the arguments say, and print it."""
    kind, *names = arguments
    for name in names:
        with contextlib.redirect_stdout(sys.stderr):
            found = import_module(name) if kind == "import" else run_model(name)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
