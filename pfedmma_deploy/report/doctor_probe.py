"""What is only known by trying, tried in a process of its own: a crash there is a finding here.

`python -m pfedmma_deploy.report.doctor_probe import torch torchvision` imports one after the other;
`... run CUDAExecutionProvider` runs a tiny model on an execution provider. One JSON object a line.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["CPU", "Answer", "Probe"]

TIMEOUT = 180.0
"""Seconds; torch from a cold disk takes 20, TensorRT compiles even a tiny model."""

# y = MatMul(Conv(x, w), m), which needs cuDNN and cuBLAS on CUDA: x [1, 1, 4, 4], w [2, 1, 3, 3]
# and m [2, 2] are ones, so that every number of y [1, 2, 2, 2] is 9 + 9. Opset 18.
MODEL = base64.b64decode(
    "CAg62gEKDwoBeAoBdxIBYyIEQ29udgoRCgFjCgFtEgF5IgZNYXRNdWwSBHRpbnkqVwgCCAEIAwgDEAFCAXdKSAAA"
    "gD8AAIA/AACAPwAAgD8AAIA/AACAPwAAgD8AAIA/AACAPwAAgD8AAIA/AACAPwAAgD8AAIA/AACAPwAAgD8AAIA/"
    "AACAPyobCAIIAhABQgFtShAAAIA/AACAPwAAgD8AAIA/WhsKAXgSFgoUCAESEAoCCAEKAggBCgIIBAoCCARiGwoB"
    "eRIWChQIARIQCgIIAQoCCAIKAggCCgIIAkIECgAQEg=="
)
ANSWER = 18.0
CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Answer:
    """What a probe printed before it ended."""

    lines: tuple[dict[str, Any], ...]
    returncode: int | None
    """None where it was still at work after `TIMEOUT` seconds."""
    stderr: str


class Probe:
    """A probe at work; several may be at once."""

    def __init__(self, *arguments: str) -> None:
        """Start it. Without the current folder, whose files could stand in for packages."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )

    def finish(self, timeout: float = TIMEOUT) -> Answer:
        """Wait for its end, at most `timeout` seconds."""
        returncode: int | None
        try:
            stdout, stderr = self._process.communicate(timeout=timeout)
            returncode = self._process.returncode
        except subprocess.TimeoutExpired:
            self._process.kill()
            stdout, stderr = self._process.communicate()
            returncode = None
        return Answer(tuple(_objects(stdout)), returncode, stderr)


def _objects(text: str) -> list[dict[str, Any]]:
    """The lines that are JSON objects; a library may print others."""
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                found.append(value)
    return found


def import_module(name: str) -> dict[str, Any]:
    """Import a module; its version, and for torch what it sees of CUDA."""
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
    """Run the tiny model on `provider` alone, never on the CPU instead."""
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
    return {
        "provider": session.get_providers()[0],
        "largest_error": float(np.abs(found - ANSWER).max()),
    }


def main(arguments: Sequence[str]) -> None:
    """Do what the arguments say and print it."""
    kind, *names = arguments
    for name in names:
        with contextlib.redirect_stdout(sys.stderr):
            found = import_module(name) if kind == "import" else run_model(name)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
