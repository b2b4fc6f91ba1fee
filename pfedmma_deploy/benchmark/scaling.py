"""Many clients in one file: does the time per image stay, and what does one more client cost?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pfedmma_deploy.benchmark.bundles import RandomBundles
from pfedmma_deploy.benchmark.cold import ColdStart, start_cold
from pfedmma_deploy.benchmark.load import Start, cold_rows
from pfedmma_deploy.benchmark.photos import write_photos
from pfedmma_deploy.benchmark.rate import Setting, measure_rates
from pfedmma_deploy.benchmark.rows import Row
from pfedmma_deploy.benchmark.subjects import exported, plain_onnx
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.export.export_config import ExportConfig
from pfedmma_deploy.progress import Progress
from pfedmma_deploy.runtime import Bundle
from pfedmma_deploy.runtime.bundle import VISION_MODEL

__all__ = ["measure_scaling"]


def measure_scaling(
    source: RandomBundles,
    counts: Sequence[int],
    form: ExportConfig,
    batch: int,
    setting: Setting,
    progress: Progress,
) -> Iterator[Row]:
    """Rows of one backbone with different numbers of clients in the file, batches mixed.

    Args:
        source: makes the bundles.
        counts: numbers of clients.
        form: of the models.
        batch: images per call.
        setting: how rates are taken.
        progress: is told of the windows, and of what does not fit.
    """
    folders: dict[int, Path] = {}
    for count in sorted(counts):
        progress.note(f"{setting.backbone}: a file with {count:,} clients")
        try:
            folders[count] = source.make(count, form)
        except UsageError as error:
            progress.note(f"not measured: {error}")
            name = f"pfedmma {form.precision}"
            yield Row(
                "clients",
                setting.backbone,
                name,
                form.precision,
                form.flavour,
                count,
                reason=str(error),
            )
    memory = _memory(folders, batch, setting, source.folder, progress)
    plain = plain_onnx(source.backbone, source.folder, setting.device, setting.threads)
    ours = [
        exported(Bundle.open(path), source.backbone, setting.device, setting.threads)
        for path in folders.values()
    ]
    for row in measure_rates("clients", [plain, *ours], plain.label, [batch], setting, progress):
        if row.clients is None:
            yield row
            continue
        cold, fewest = memory[row.clients], min(memory)
        more = row.clients - fewest
        cost = (cold.memory or 0) - (memory[fewest].memory or 0)
        yield replace(
            row,
            memory=cold.memory,
            peak_memory=cold.peak_memory,
            file_bytes=(folders[row.clients] / VISION_MODEL).stat().st_size,
            bytes_per_client=cost // more if more else None,
        )


def _memory(
    folders: dict[int, Path], batch: int, setting: Setting, folder: Path, progress: Progress
) -> dict[int, Row]:
    """Memory of fresh processes that answer one batch, by number of clients."""
    (photo,) = write_photos(folder / "photo", 1)

    def start(path: Path) -> Start:
        def run() -> ColdStart:
            return start_cold("bundle", str(path), setting.device, str(batch), photo)

        return run

    starts = [
        (Row("clients", setting.backbone, "", "", clients=count), start(path))
        for count, path in folders.items()
    ]
    rows = cold_rows(starts, f"{setting.backbone}: fresh processes", progress)
    return {row.clients or 0: row for row in rows}
