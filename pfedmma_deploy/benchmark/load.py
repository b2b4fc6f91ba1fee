"""Load time, time to the first answer, and memory: each process fresh, in turns.

The child, `python -m pfedmma_deploy.benchmark.load`, prints one JSON line as soon as it has its
first answer.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from pfedmma_deploy.errors import PfedmmaError
from pfedmma_deploy.progress import Progress
from pfedmma_deploy.system import peak_memory, resident_memory

# The child starts with this module: nothing heavy is imported here.
if TYPE_CHECKING:
    from pfedmma_deploy.backbone.clip import Backbone
    from pfedmma_deploy.benchmark.report import Row
    from pfedmma_deploy.runtime import Bundle

ROUNDS = 3
"""Fresh processes of each kind; odd, so that medians are of values that were seen."""


@dataclass(frozen=True)
class ColdStart:
    """One fresh process; fields as in `Row`."""

    first_answer: float
    load: float | None = None
    memory: int | None = None
    peak_memory: int | None = None


Start = Callable[[], ColdStart]
Call = Callable[[], object]


def measure_load(
    bundles: Sequence[Bundle],
    backbone: Backbone,
    device: str,
    photo: str,
    plain_onnx: Path,
    progress: Progress,
) -> Iterator[Row]:
    """Rows of loading and answering once: bundles, the whole command, and the peers.

    Args:
        bundles: of one backbone.
        backbone: the peers' model; open_clip reads its weights (both towers) from a file.
        device: `cpu` or `cuda`.
        photo: the image that is classified.
        plain_onnx: the image tower without adapters; the other file is written beside it.
        progress: is told of the processes.
    """
    from safetensors.torch import save_file

    from pfedmma_deploy.benchmark.report import Row, bundle_row
    from pfedmma_deploy.runtime.bundle import VISION_MODEL

    name, weights = backbone.name, plain_onnx.with_name("weights.safetensors")
    save_file({k: v.contiguous() for k, v in backbone.model.state_dict().items()}, weights)
    row = Row("load", name, "torch eager fp32", "fp32", batch_size=1)
    row = replace(row, file_bytes=weights.stat().st_size)
    starts: list[tuple[Row, Start]] = [
        (row, partial(start_cold, "torch", name, str(weights), device, "1")),
        (
            replace(row, name="onnxruntime fp32", file_bytes=plain_onnx.stat().st_size),
            partial(start_cold, "onnx", str(plain_onnx), device, "1"),
        ),
    ]
    for bundle in bundles:
        path, size = str(bundle.path), (bundle.path / VISION_MODEL).stat().st_size
        ours = replace(bundle_row("load", name, bundle.manifest), batch_size=1, file_bytes=size)
        starts.append((ours, partial(start_cold, "bundle", path, device, "1", photo)))
        command = ["predict", photo, "--model", path, "--client", bundle.manifest.clients[-1].id]
        command += ["--device", device, "--json"]
        whole = replace(ours, name=f"pfedmma predict, {ours.name}")
        starts.append((whole, partial(start_command, command)))
    yield from cold_rows(starts, f"{name}: fresh processes", progress)


def cold_rows(starts: Sequence[tuple[Row, Start]], label: str, progress: Progress) -> Iterator[Row]:
    """Each row with the medians of `ROUNDS` fresh processes, started in turns."""
    found: list[list[ColdStart]] = [[] for _ in starts]
    # In turns and not one kind after the other: a busy minute of the machine meets all of them.
    order = list(range(len(starts))) * ROUNDS
    for place in progress.track(order, label, len(order)):
        found[place].append(starts[place][1]())
    for (row, _), seen in zip(starts, found, strict=True):
        medians: dict[str, Any] = {}
        for name in ("first_answer", "load", "memory", "peak_memory"):
            values = [getattr(one, name) for one in seen]
            medians[name] = None if None in values else median(values)
        yield replace(row, **medians)


def start_cold(kind: str, *arguments: str) -> ColdStart:
    """Start a process that loads one model and answers once.

    Args:
        kind: `bundle`, `onnx` or `torch`.
        arguments: those of `load_bundle`, `load_onnx` or `load_torch`, as text.

    Raises:
        PfedmmaError: the process failed; with the end of what it said.
    """
    seconds, line = _first_line("pfedmma_deploy.benchmark.load", kind, *arguments)
    return ColdStart(seconds, **json.loads(line))


def start_command(arguments: Sequence[str]) -> ColdStart:
    """Start a `pfedmma` command that prints one line. Raises like `start_cold`."""
    return ColdStart(_first_line("pfedmma_deploy.cli", *arguments)[0])


def _first_line(*module: str) -> tuple[float, str]:
    """Run a module with arguments; seconds until its first line on stdout, and that line."""
    before = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", *module], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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
        raise PfedmmaError(f"The fresh process `{' '.join(module[:2])}` failed: {reason}")
    return seconds, line


def load_bundle(folder: str, device: str, batch: str, photo: str) -> Call:
    """`Classifier.load`, for `batch` photographs of different clients."""
    from pfedmma_deploy.runtime import Classifier

    classifier, size = Classifier.load(folder, device=device), int(batch)
    clients = spread_clients(size, len(classifier.clients) - 1)
    return lambda: classifier.predict([photo] * size, client=clients, batch_size=size)


def load_onnx(file: str, device: str, batch: str) -> Call:
    """An ONNX Runtime session of a plain image tower, for noise of its input's size."""
    import numpy as np

    from pfedmma_deploy.runtime.providers import open_session

    session = open_session(Path(file), "cuda" if device == "cuda" else "cpu")
    entry = session.get_inputs()[0]
    dtype = np.float16 if "float16" in entry.type else np.float32
    pixels = np.zeros((int(batch), *entry.shape[1:]), dtype)
    return lambda: session.run(None, {entry.name: pixels})


def load_torch(name: str, weights: str, device: str, batch: str) -> Call:
    """open_clip's model with weights from a file, for noise of its input's size."""
    import open_clip
    import torch

    from pfedmma_deploy.backbone.loading import register

    register()
    model = open_clip.create_model(name, pretrained=weights, device=device).eval()

    def answer() -> None:
        with torch.inference_mode():
            model.encode_image(torch.zeros(int(batch), 3, *model.visual.image_size, device=device))
            if device == "cuda":
                torch.cuda.synchronize()

    return answer


def spread_clients(batch: int, clients: int) -> list[int]:
    """Client indices of a batch, spread over the whole bank: 1 to `clients`, with repeats last."""
    return [1 + place * clients // batch for place in range(batch)]


def main(arguments: list[str]) -> None:
    """The child: load, answer, report."""
    kinds: dict[str, Callable[..., Call]]
    kinds = {"bundle": load_bundle, "onnx": load_onnx, "torch": load_torch}
    kind, *rest = arguments
    before = time.perf_counter()
    # Holds the model until its memory has been read.
    answer = kinds[kind](*rest)
    load = time.perf_counter() - before
    answer()
    values = {"load": load, "memory": resident_memory(), "peak_memory": peak_memory()}
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
