"""Load time, time to the first answer and memory: each process fresh, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from pfedmma_deploy.benchmark.cold import ColdStart, start_cold, start_command
from pfedmma_deploy.benchmark.photos import write_photos
from pfedmma_deploy.benchmark.rate import Setting
from pfedmma_deploy.benchmark.rows import Row
from pfedmma_deploy.benchmark.subjects import plain_file
from pfedmma_deploy.progress import Progress
from pfedmma_deploy.runtime import Bundle
from pfedmma_deploy.runtime.bundle import VISION_MODEL

if TYPE_CHECKING:
    from pfedmma_deploy.backbone.clip import Backbone

__all__ = ["cold_rows", "measure_load"]

ROUNDS = 3
"""Fresh processes of each kind."""
Start = Callable[[], ColdStart]


def measure_load(
    bundles: Sequence[Bundle],
    backbone: Backbone,
    folder: Path,
    setting: Setting,
    progress: Progress,
) -> Iterator[Row]:
    """Rows of loading and answering once: bundles, the whole command, and the peers.

    Args:
        bundles: of one backbone.
        backbone: the peers' model; open_clip reads its weights (both towers) from a file.
        folder: for the peers' files.
        setting: how rates are taken.
        progress: is told of the processes.
    """
    (photo,) = write_photos(folder / "photo", 1)
    device, name = setting.device, setting.backbone
    weights, onnx_file = folder / "weights.safetensors", plain_file(backbone, folder)
    save_file({k: v.contiguous() for k, v in backbone.model.state_dict().items()}, weights)

    def torch_start() -> ColdStart:
        return start_cold("torch", name, str(weights), device, "1")

    def onnx_start() -> ColdStart:
        return start_cold("onnx", str(onnx_file), device, "1")

    starts: list[tuple[Row, Start]] = [
        (_row(name, "torch eager fp32", "fp32", weights), torch_start),
        (_row(name, "onnxruntime fp32", "fp32", onnx_file), onnx_start),
    ]
    for bundle in bundles:
        starts += _starts_of(bundle, photo, setting)
    yield from cold_rows(starts, f"{name}: fresh processes", progress)


def _starts_of(bundle: Bundle, photo: str, setting: Setting) -> list[tuple[Row, Start]]:
    manifest, path = bundle.manifest, str(bundle.path)
    row = replace(
        _row(
            setting.backbone,
            f"pfedmma {manifest.precision}",
            manifest.precision,
            bundle.path / VISION_MODEL,
        ),
        flavour=manifest.flavour,
        clients=len(manifest.clients) - 1,
    )
    command = ["predict", photo, "--model", path, "--client", manifest.clients[-1].id]
    command += ["--device", setting.device, "--json"]
    return [
        (row, lambda: start_cold("bundle", path, setting.device, "1", photo)),
        (replace(row, name=f"pfedmma predict, {row.name}"), lambda: start_command(command)),
    ]


def cold_rows(starts: Sequence[tuple[Row, Start]], label: str, progress: Progress) -> Iterator[Row]:
    """Each row with the medians of `ROUNDS` fresh processes, started in turns."""
    found: dict[int, list[ColdStart]] = {number: [] for number in range(len(starts))}
    order = [number for _ in range(ROUNDS) for number in found]
    for number in progress.track(order, label, len(order)):
        found[number].append(starts[number][1]())
    for number, (row, _) in enumerate(starts):
        seen = found[number]
        first = statistics.median(one.first_answer for one in seen)
        if any(one.load is None for one in seen):
            yield replace(row, first_answer=first)
            continue
        yield replace(
            row,
            first_answer=first,
            load=statistics.median(one.load or 0.0 for one in seen),
            memory=int(statistics.median(one.memory or 0 for one in seen)),
            peak_memory=int(statistics.median(one.peak_memory or 0 for one in seen)),
        )


def _row(backbone: str, name: str, precision: str, file: Path) -> Row:
    size = file.stat().st_size
    return Row("load", backbone, name, precision, batch_size=1, file_bytes=size)
