"""Load time and memory, each in a fresh process: `python -m pfedmma_deploy.benchmark.cold`.

The child prints one JSON line as soon as it has its first answer.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pfedmma_deploy.errors import PfedmmaError
from pfedmma_deploy.system import peak_memory, resident_memory

__all__ = ["ColdStart", "start_cold", "start_command"]

Loaded = tuple[float, object]
"""Seconds for importing and loading, and the model."""


@dataclass(frozen=True)
class ColdStart:
    """One fresh process."""

    first_answer: float
    """Seconds from the start of the process to its first answer, imports and loading included."""
    load: float | None = None
    """Seconds of these for importing the libraries and loading the model."""
    memory: int | None = None
    """Resident bytes after the answer."""
    peak_memory: int | None = None
    """Largest resident size until then, bytes."""


def start_cold(kind: str, *arguments: str) -> ColdStart:
    """Start a process that loads one model and answers once.

    Args:
        kind: `bundle`, `onnx` or `torch`.
        arguments: those of `from_bundle`, `from_onnx` or `from_torch`, as text.

    Raises:
        PfedmmaError: the process failed; with the end of what it said.
    """
    seconds, line = _first_line(["pfedmma_deploy.benchmark.cold", kind, *arguments])
    found = json.loads(line)
    return ColdStart(seconds, found["load"], found["memory"], found["peak_memory"])


def start_command(arguments: Sequence[str]) -> ColdStart:
    """Start a `pfedmma` command that prints one line. Raises like `start_cold`."""
    seconds, _ = _first_line(["pfedmma_deploy.cli", *arguments])
    return ColdStart(seconds)


def _first_line(module: Sequence[str]) -> tuple[float, str]:
    """Run a module with arguments; seconds until its first line on stdout, and that line."""
    before = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", *module], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            seconds = time.perf_counter() - before
            _, remarks = process.communicate()
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0 or not line.strip():
        reason = (remarks.strip().splitlines() or ["it said nothing"])[-1]
        raise PfedmmaError(f"The fresh process `{' '.join(module[:2])}` failed: {reason}")
    return seconds, line


def from_bundle(folder: str, device: str, batch: str, photo: str) -> Loaded:
    """`Classifier.load`, then `batch` photographs of different clients."""
    before = time.perf_counter()
    from pfedmma_deploy.runtime import Classifier

    classifier = Classifier.load(folder, device=device)
    seconds = time.perf_counter() - before
    size, count = int(batch), len(classifier.clients) - 1
    classifier.predict([photo] * size, client=spread_clients(size, count), batch_size=size)
    return seconds, classifier


def from_onnx(file: str, device: str, batch: str) -> Loaded:
    """An ONNX Runtime session of a plain image tower, then noise of its input's size."""
    before = time.perf_counter()
    import numpy as np

    from pfedmma_deploy.runtime.providers import open_session

    session = open_session(Path(file), "cuda" if device == "cuda" else "cpu")
    seconds = time.perf_counter() - before
    entry = session.get_inputs()[0]
    kind = np.float16 if "float16" in entry.type else np.float32
    session.run(None, {entry.name: np.zeros((int(batch), *entry.shape[1:]), kind)})
    return seconds, session


def from_torch(name: str, weights: str, device: str, batch: str) -> Loaded:
    """open_clip's model with weights from a file, then noise of its input's size."""
    before = time.perf_counter()
    import open_clip
    import torch

    from pfedmma_deploy.backbone import tiny

    tiny.register()
    model = open_clip.create_model(name, pretrained=weights, device=device).eval()
    seconds = time.perf_counter() - before
    with torch.inference_mode():
        model.encode_image(torch.zeros(int(batch), 3, *model.visual.image_size, device=device))
        if device == "cuda":
            torch.cuda.synchronize()
    return seconds, model


def spread_clients(batch: int, clients: int) -> list[int]:
    """Client indices of a batch, spread over the whole bank: 1 to `clients`, with repeats last."""
    return [1 + place * clients // batch for place in range(batch)]


def main(arguments: list[str]) -> None:
    """The child: load, answer, report."""
    kinds: dict[str, Callable[..., Loaded]] = {
        "bundle": from_bundle,
        "onnx": from_onnx,
        "torch": from_torch,
    }
    kind, *rest = arguments
    # The model is held until its memory has been read.
    load, _model = kinds[kind](*rest)
    values = {"load": load, "memory": resident_memory(), "peak_memory": peak_memory()}
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
