"""Load time, time to the first answer, and memory: each time a process of its own.

The child, `python -m pfedmma_deploy.benchmark.load`, prints one JSON line as soon as it has its
first answer. It starts with this module, which therefore imports nothing heavy.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pfedmma_deploy.errors import PfedmmaError
from pfedmma_deploy.system import peak_memory, resident_memory

Call = Callable[[], object]
CHILD = "pfedmma_deploy.benchmark.load"


def start_cold(kind: str, *arguments: str) -> dict[str, Any]:
    """Start a process that loads one model, answers once and prints one JSON line.

    Args:
        kind: `bundle`, `onnx` or `torch`; or `predict`, which is the whole command.
        arguments: those of `load_bundle`, `load_onnx`, `load_torch` or the command, as text.

    Returns:
        `first_answer`, the seconds until that line; but for the command also `load` in seconds,
        `memory` and `peak_memory` in bytes.

    Raises:
        PfedmmaError: the process failed; with the end of what it said.
    """
    module = CHILD if kind in LOADERS else "pfedmma_deploy.cli"
    command = [sys.executable, "-m", module, kind, *arguments]
    before = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            # Not until the process ends: nobody waits for Python to tidy up.
            line = process.stdout.readline()
            seconds = time.perf_counter() - before
            _, remarks = process.communicate()
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0 or not line.strip():
        reason = (remarks.strip().splitlines() or ["it said nothing"])[-1]
        raise PfedmmaError(f"The fresh process `{module} {kind}` failed: {reason}")
    said = json.loads(line) if kind in LOADERS else {}
    return {"first_answer": seconds, **said}


def load_bundle(folder: str, device: str, batch: str, photo: str) -> Call:
    """`Classifier.load`, for `batch` photographs of different clients."""
    from pfedmma_deploy.runtime import Classifier

    classifier, size = Classifier.load(folder, device=device), int(batch)
    clients = spread_clients(size, len(classifier.clients) - 1)
    return lambda: classifier.predict([photo] * size, client=clients, batch_size=size)


def load_onnx(file: str, device: str) -> Call:
    """An ONNX Runtime session of a plain image tower, for one image of noise."""
    import numpy as np

    from pfedmma_deploy.runtime.providers import open_session

    session = open_session(Path(file), "cuda" if device == "cuda" else "cpu")
    entry = session.get_inputs()[0]
    pixels = np.zeros((1, *entry.shape[1:]), np.float32)
    return lambda: session.run(None, {entry.name: pixels})


def load_torch(name: str, weights: str, device: str) -> Call:
    """open_clip's model with weights from a file, for one image of noise."""
    import open_clip
    import torch

    from pfedmma_deploy.backbone.loading import register

    register()
    model = open_clip.create_model(name, pretrained=weights, device=device).eval()

    def answer() -> None:
        with torch.inference_mode():
            model.encode_image(torch.zeros(1, 3, *model.visual.image_size, device=device))
            if device == "cuda":
                torch.cuda.synchronize()

    return answer


def spread_clients(batch: int, clients: int) -> list[int]:
    """Client indices of a batch, spread over the whole bank: 1 to `clients`, with repeats last."""
    return [1 + place * clients // batch for place in range(batch)]


LOADERS: dict[str, Callable[..., Call]] = {
    "bundle": load_bundle,
    "onnx": load_onnx,
    "torch": load_torch,
}


def main(kind: str, *arguments: str) -> None:
    """The child: load, answer, report."""
    before = time.perf_counter()
    # Holds the model until its memory has been read.
    answer = LOADERS[kind](*arguments)
    load = time.perf_counter() - before
    answer()
    values = {"load": load, "memory": resident_memory(), "peak_memory": peak_memory()}
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
