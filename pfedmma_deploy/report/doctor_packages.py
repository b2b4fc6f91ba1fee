"""What is installed, and whether the parts fit each other; nothing of it is imported here."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Sequence
from importlib import metadata, util
from pathlib import Path

from pfedmma_deploy import __version__
from pfedmma_deploy.report.doctor_check import Check, guarded
from pfedmma_deploy.report.doctor_probe import Answer

__all__ = ["REINSTALL_RUNTIME", "check_imports", "check_packages", "installed"]

DISTRIBUTION = "pfedmma-deploy"
CPU_PACKAGE, GPU_PACKAGE = "onnxruntime", "onnxruntime-gpu"
REINSTALL_RUNTIME = (
    "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'"
)
REINSTALL_TORCH = (
    "pip uninstall -y torch torchvision && pip install torch torchvision (both from one source: "
    "the same index, the same CUDA build)"
)
_BUILD = re.compile(r"^__version__\s*(?::[^=]+)?=\s*['\"]([^'\"]+)['\"]", re.MULTILINE)


def installed(name: str) -> str | None:
    """The version of a distribution, None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_packages(device: str) -> Iterator[Check]:
    """Versions of what this package needs, the ONNX Runtime clash, the torch pair."""
    yield Check("python", True, f"{platform.python_version()} on {platform.platform(terse=True)}")
    yield from guarded("packages", _requirements)
    yield from guarded("onnxruntime packages", lambda: _onnxruntime(device))
    yield from guarded("torch and torchvision", _torch_pair)


def _requirements() -> Iterator[Check]:
    """Everything that the package's own metadata ask for on this platform."""
    from packaging.requirements import Requirement

    if installed(DISTRIBUTION) is None:
        found = f"{DISTRIBUTION} {__version__} runs from its sources: nothing says what it needs"
        yield Check("packages", False, found, "pip install . (in the folder of the sources)")
        return
    wanted = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or ()]
    names = [w for w in wanted if w.marker is None or w.marker.evaluate({"extra": ""})]
    have = {w.name: installed(w.name) for w in names}
    found = ", ".join(f"{name} {version or 'MISSING'}" for name, version in have.items())
    wrong = [
        str(w).partition(";")[0].strip()
        for w in names
        if (version := have[w.name]) is None or not w.specifier.contains(version, prereleases=True)
    ]
    # What is said of ONNX Runtime and its clash is a check of its own.
    wrong = [text for text in wrong if not text.startswith(CPU_PACKAGE)]
    quoted = " ".join(f"'{text}'" for text in wrong)
    yield Check(
        "packages",
        not wrong,
        f"{DISTRIBUTION} {__version__}; {found}",
        f"pip install {quoted}" if wrong else "",
        stops=bool(wrong),
    )


def _onnxruntime(device: str) -> Iterator[Check]:
    """`onnxruntime` and `onnxruntime-gpu` are two distributions of one module."""
    cpu, gpu = installed(CPU_PACKAGE), installed(GPU_PACKAGE)
    versions = [f"{n} {v}" for n, v in ((CPU_PACKAGE, cpu), (GPU_PACKAGE, gpu)) if v]
    asked = device in ("cuda", "tensorrt")
    problem, stops = "", True
    if cpu and gpu:
        problem, stops = ": they share one module, and CUDA vanishes", asked
    elif not versions:
        problem = "neither onnxruntime-gpu nor onnxruntime is installed"
    elif asked and not gpu:
        problem = ", which has no CUDA"
    found = f"{' and '.join(versions)}{problem}"
    if problem:
        yield Check("onnxruntime packages", False, found, REINSTALL_RUNTIME, stops)
    else:
        yield Check("onnxruntime packages", True, found)


def _torch_pair() -> Iterator[Check]:
    """Builds of torch and torchvision by their files: a wrong pair raises when imported."""
    builds = {name: _build(name) for name in ("torch", "torchvision")}
    found = ", ".join(f"{name} {build or 'not installed'}" for name, build in builds.items())
    tags = {build.partition("+")[2] for build in builds.values() if build and "+" in build}
    fits = len(tags) < 2
    if not fits:
        found += ": builds for different devices, so that `import torchvision` fails"
    yield Check("torch and torchvision", fits, found, "" if fits else REINSTALL_TORCH, not fits)


def _build(module: str) -> str | None:
    """`2.15.0+cu132` from the module's version.py; None where there is none."""
    spec = util.find_spec(module)
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).with_name("version.py")
    if not file.is_file():
        return installed(module)
    match = _BUILD.search(file.read_text(encoding="utf-8", errors="replace"))
    return match[1] if match else installed(module)


def check_imports(modules: Sequence[str], answer: Answer) -> Iterator[Check]:
    """What importing the modules one after the other brought, each its own finding."""
    lines = {line.get("module"): line for line in answer.lines}
    for module in modules:
        line = lines.get(module)
        name = f"import {module}"
        if line is None:
            how = (
                "did not end in time"
                if answer.returncode is None
                else f"ended the process (exit code {answer.returncode})"
            )
            last = answer.stderr.strip().splitlines()[-1:] or [""]
            found = f"{how} {last[0]}".strip()
            yield Check(name, False, found, _advice(module, found), stops=True)
            return
        if "error" in line:
            found = " ".join(str(line["error"]).split())[:300]
            yield Check(name, False, found, _advice(module, found), stops=True)
        else:
            sees = "" if module != "torch" else f", {line.get('cuda') or 'no CUDA device'}"
            yield Check(name, True, f"{line['version']} in {line['seconds']:.1f} s{sees}")


def _advice(module: str, error: str) -> str:
    if "torchvision::nms" in error or (module == "torchvision" and "CUDA" in error):
        return REINSTALL_TORCH
    if f"No module named '{module}'" in error:
        package = {"open_clip": "open_clip_torch"}.get(module, module)
        return f"pip install {package} (predict works without it; train and export do not)"
    return f"pip install --force-reinstall {module.replace('open_clip', 'open_clip_torch')}"
