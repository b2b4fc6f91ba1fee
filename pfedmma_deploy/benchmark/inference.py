"""The inference benchmark: exported models beside torch and plain ONNX Runtime, in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.backbone.loading import RANDOM, load_backbone
from pfedmma_deploy.benchmark import subjects
from pfedmma_deploy.benchmark.bundles import RandomBundles
from pfedmma_deploy.benchmark.load import cold_rows, measure_load, start_cold
from pfedmma_deploy.benchmark.options import InferenceOptions
from pfedmma_deploy.benchmark.report import Measure, Row, bundle_row, latency
from pfedmma_deploy.benchmark.subjects import Subject
from pfedmma_deploy.benchmark.timing import Contestant, run_rounds
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.runtime import Bundle, Classifier
from pfedmma_deploy.runtime.bundle import VISION_MODEL

PLAIN = "onnxruntime fp32"
"""The peer that every rate is compared with first."""
TORCH = "torch eager fp32"
LONGEST_CALL = 2.0
"""Seconds. Batches whose one call takes the peer longer than this are left out: a rate is the same
as with the batch before, and a round would take minutes."""
FEWEST, MOST = 8, 256
"""Photographs per call, from files to labels."""

Peers = Callable[[Backbone, InferenceOptions], Sequence[Subject]]


def bench_inference(
    options: InferenceOptions, progress: Progress | None = None, peers: Peers | None = None
) -> Iterator[Row]:
    """Measure; rows come as they are found. What is written on the way is removed at the end.

    Args:
        options: what is measured.
        progress: is told of what takes long.
        peers: further subjects for the rates, made of a backbone.

    Raises:
        BackboneError: an unknown backbone, or one that cannot be adapted.
        BundleError: `options.model` is no bundle.
        DeviceError: the device cannot be used.
    """
    progress = progress or Silent()
    # torch's alone: sessions of ONNX Runtime get their threads when they are opened.
    torch.set_num_threads(options.threads)
    given = None if options.model is None else Bundle.open(options.model)
    names = options.backbones if given is None else (str(given.manifest.backbone["name"]),)
    for name in names:
        with tempfile.TemporaryDirectory(prefix="pfedmma-bench-") as folder:
            progress.note(f"{name}: loading, and exporting with random adapters")
            backbone = load_backbone(name, RANDOM)
            bench = Bench(options, backbone, Path(folder), progress)
            yield from bench.run(given, peers(backbone, options) if peers else ())


class Bench:
    """The measurements of one backbone."""

    def __init__(
        self, options: InferenceOptions, backbone: Backbone, folder: Path, progress: Progress
    ) -> None:
        self.options, self.backbone, self.folder = options, backbone, folder
        self.progress = progress
        self.random = RandomBundles(backbone, folder, options.bottleneck_dim)
        self.batch = max(options.batch_sizes)
        """Images per call; the largest that the rates were taken with."""
        self.rate = 0.0
        """Images per second that are roughly expected, once the rates were taken."""

    def run(self, given: Bundle | None, peers: Sequence[Subject]) -> Iterator[Row]:
        """All rows that the options ask for."""
        options, wanted = self.options, set(self.options.measures)
        bundles = [] if given is None else [given]
        if given is None and wanted != {"clients"}:
            for form in options.forms:
                bundles.append(Bundle.open(self.random.make(options.clients, form)))
        if "rate" in wanted:
            yield from self._rates(bundles, peers)
        if "end-to-end" in wanted:
            yield from self._end_to_end(bundles)
        if "load" in wanted:
            (photo,) = subjects.write_photos(self.folder / "photo", 1)
            plain = subjects.plain_file(self.backbone, self.folder)
            yield from measure_load(
                bundles, self.backbone, options.device, photo, plain, self.progress
            )
        if "clients" in wanted and given is None:
            yield from self._scaling()

    def _rates(self, bundles: Sequence[Bundle], peers: Sequence[Subject]) -> Iterator[Row]:
        """The device alone, at every batch size."""
        device, threads = self.options.device, self.options.threads
        precisions = ("fp32", "fp16") if device == "cuda" else ("fp32",)
        compared = [
            *(subjects.eager_torch(self.backbone, device, name) for name in precisions),
            *peers,
            *(
                subjects.plain_onnx(self.backbone, self.folder, device, threads, name)
                for name in precisions
            ),
            *(subjects.exported(bundle, device, threads) for bundle in bundles),
        ]
        for row in self.measure_rates("rate", compared, PLAIN, self.options.batch_sizes):
            self.batch = row.batch_size or self.batch
            if row.name == PLAIN:
                self.rate = row.images_per_second or 0.0
            yield row

    def measure_rates(
        self, measure: Measure, compared: Sequence[Subject], peer: str, batch_sizes: Sequence[int]
    ) -> Iterator[Row]:
        """Rows of all subjects for every batch size, smallest batch first.

        Args:
            measure: what the rows are called.
            compared: measured in turns with each other.
            peer: label of the subject that `Row.ratio` refers to.
            batch_sizes: images per call.
        """
        name, slowest = self.backbone.name, 0.0
        for batch in sorted(batch_sizes):
            if slowest * batch > LONGEST_CALL:
                self.progress.note(
                    f"{name}: batch {batch} left out, one call takes about "
                    f"{slowest * batch:.0f} s here."
                )
                continue
            contestants = [Contestant(one.label, one.prepare(batch), batch) for one in compared]
            windows = run_rounds(
                contestants,
                self.options.rounds,
                self.options.seconds,
                progress=self.progress,
                label=f"{name}: windows at batch {batch}",
            )
            for one in compared:
                row = Row(
                    measure, name, one.name, one.precision, one.flavour, one.clients, batch
                ).timed(windows, one.label, peer)
                if batch == 1:
                    row = replace(row, latency=latency(windows[one.label].calls))
                yield row
            slowest = min(windows[peer].calls) / batch

    def _end_to_end(self, bundles: Sequence[Bundle]) -> Iterator[Row]:
        """From JPEG files to labels: decoding, resizing and the model together."""
        options, batch, name = self.options, self.batch, self.backbone.name
        # One call should about fill a window: decoding runs ahead, and starts anew in every call.
        count = int(min(max(self.rate * options.seconds, FEWEST), MOST))
        photos = subjects.write_photos(self.folder / "photos", count)
        row = Row("end-to-end", name, TORCH, "fp32", batch_size=batch)
        device, threads = options.device, options.threads
        loops: list[tuple[Row, Callable[[], object]]] = [
            (row, subjects.torch_loop(self.backbone, photos, batch, device)),
            (
                replace(row, name=PLAIN),
                subjects.onnx_loop(self.backbone, self.folder, photos, batch, device, threads),
            ),
        ]
        for bundle in bundles:
            ours = replace(bundle_row("end-to-end", name, bundle.manifest), batch_size=batch)
            classifier = Classifier(bundle, device, threads)
            loops.append((ours, subjects.bundle_loop(classifier, photos, batch)))
        windows = run_rounds(
            [Contestant(own.name, loop, count) for own, loop in loops],
            options.rounds,
            options.seconds,
            progress=self.progress,
            label=f"{name}: windows of {count} files",
        )
        for own, _ in loops:
            yield own.timed(windows, own.name, TORCH)

    def _scaling(self) -> Iterator[Row]:
        """Many clients in one file: does the time per image stay, and what does one more cost?"""
        form, options, name = self.options.forms[0], self.options, self.backbone.name
        row = Row("clients", name, f"pfedmma {form.precision}", form.precision, form.flavour)
        (photo,) = subjects.write_photos(self.folder / "photo", 1)
        device, threads = options.device, options.threads
        # The peer takes part here too: rates of other rounds do not compare with these.
        compared = [subjects.plain_onnx(self.backbone, self.folder, device, threads)]
        starts, sizes = [], {}
        for count in sorted(options.scaling):
            self.progress.note(f"{name}: a file with {count:,} clients")
            try:
                bundle = Bundle.open(self.random.make(count, form))
            except UsageError as error:  # too large a file; the smaller ones are still of interest
                self.progress.note(f"not measured: {error}")
                yield replace(row, clients=count, reason=str(error))
                continue
            compared.append(subjects.exported(bundle, device, threads))
            sizes[count] = (bundle.path / VISION_MODEL).stat().st_size
            arguments = (str(bundle.path), device, str(self.batch), photo)
            starts.append((replace(row, clients=count), partial(start_cold, "bundle", *arguments)))
        cold = {}
        for one in cold_rows(starts, f"{name}: fresh processes", self.progress):
            cold[one.clients or 0] = one
        for one in self.measure_rates("clients", compared, PLAIN, [self.batch]):
            if one.clients is None:
                yield one
                continue
            own, fewest = cold[one.clients], min(cold)
            more = one.clients - fewest
            cost = (own.memory or 0) - (cold[fewest].memory or 0)
            yield replace(
                one,
                memory=own.memory,
                peak_memory=own.peak_memory,
                file_bytes=sizes[one.clients],
                bytes_per_client=cost // more if more else None,
            )
