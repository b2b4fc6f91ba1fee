"""The inference benchmark: exported models beside torch and plain ONNX Runtime, in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.backbone.loading import RANDOM, load_backbone
from pfedmma_deploy.benchmark import subjects
from pfedmma_deploy.benchmark.bundles import RandomBundles
from pfedmma_deploy.benchmark.end_to_end import measure_end_to_end
from pfedmma_deploy.benchmark.load import measure_load
from pfedmma_deploy.benchmark.options import InferenceOptions
from pfedmma_deploy.benchmark.peak import measure_peaks
from pfedmma_deploy.benchmark.rate import Setting, measure_rates
from pfedmma_deploy.benchmark.rows import Row
from pfedmma_deploy.benchmark.scaling import measure_scaling
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.runtime import Bundle, Classifier

__all__ = ["PLAIN", "bench_inference", "gpu_name"]

PLAIN = "onnxruntime fp32"
"""The peer that every rate is compared with first."""


def bench_inference(options: InferenceOptions, progress: Progress | None = None) -> Iterator[Row]:
    """Measure; rows come as they are found. What is written on the way is removed at the end.

    Raises:
        BackboneError: an unknown backbone, or one that cannot be adapted.
        BundleError: `options.model` is no bundle.
        DeviceError: the device cannot be used.
    """
    progress = progress or Silent()
    torch.set_num_threads(options.threads)
    given = None if options.model is None else Bundle.open(options.model)
    names = options.backbones if given is None else (str(given.manifest.backbone["name"]),)
    if "rate" in options.measures:
        yield from measure_peaks(
            options.device, options.threads, options.rounds, options.seconds, progress
        )
    for name in names:
        with tempfile.TemporaryDirectory(prefix="pfedmma-bench-") as folder:
            progress.note(f"{name}: loading, and exporting with random adapters")
            backbone = load_backbone(name, RANDOM)
            yield from _Bench(options, backbone, Path(folder), progress).run(given)


class _Bench:
    """The measurements of one backbone."""

    def __init__(
        self, options: InferenceOptions, backbone: Backbone, folder: Path, progress: Progress
    ) -> None:
        self.options, self.backbone, self.folder = options, backbone, folder
        self.progress = progress
        self.random = RandomBundles(backbone, folder, options.bottleneck_dim)
        self.batch, self.rate = max(options.batch_sizes), 0.0
        self.setting = Setting(
            backbone=backbone.name,
            device=options.device,
            threads=options.threads,
            rounds=options.rounds,
            seconds=options.seconds,
        )

    def run(self, given: Bundle | None) -> Iterator[Row]:
        """All rows that the options ask for."""
        options, wanted = self.options, set(self.options.measures)
        bundles = [] if given is None else [given]
        if given is None and wanted != {"clients"}:
            bundles = [Bundle.open(self.random.make(options.clients, f)) for f in options.forms]
        if "rate" in wanted:
            yield from self._rates(bundles)
        if "end-to-end" in wanted:
            yield from measure_end_to_end(
                [Classifier(bundle, options.device, options.threads) for bundle in bundles],
                self.backbone,
                self.folder,
                self.batch,
                self.rate,
                self.setting,
                self.progress,
            )
        if "load" in wanted:
            yield from measure_load(
                bundles, self.backbone, self.folder, self.setting, self.progress
            )
        if "clients" in wanted and given is None:
            yield from measure_scaling(
                self.random,
                options.scaling,
                options.forms[0],
                self.batch,
                self.setting,
                self.progress,
            )

    def _rates(self, bundles: Sequence[Bundle]) -> Iterator[Row]:
        ours = [
            subjects.exported(bundle, self.backbone, self.options.device, self.options.threads)
            for bundle in bundles
        ]
        largest = 0
        for row in measure_rates(
            "rate",
            [*self._peers(), *ours],
            PLAIN,
            self.options.batch_sizes,
            self.setting,
            self.progress,
        ):
            largest = max(largest, row.batch_size or 0)
            if row.name == PLAIN:
                self.rate = row.images_per_second or 0.0
            yield row
        self.batch = largest

    def _peers(self) -> Iterator[subjects.Subject]:
        device, on_gpu = self.options.device, self.options.device == "cuda"
        for precision in ("fp32", "fp16") if on_gpu else ("fp32",):
            yield subjects.eager_torch(self.backbone, device, precision)
        if self.options.compiled:
            yield subjects.compiled_torch(self.backbone, device, "bf16" if on_gpu else "fp32")
        for precision in ("fp32", "fp16") if on_gpu else ("fp32",):
            yield subjects.plain_onnx(
                self.backbone, self.folder, device, self.options.threads, precision
            )


def gpu_name(device: str) -> str | None:
    """The model of the GPU that is measured, None on a CPU."""
    return torch.cuda.get_device_name(0) if device == "cuda" else None
