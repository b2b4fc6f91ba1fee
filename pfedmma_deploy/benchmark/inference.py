"""The inference benchmark: exported models beside torch and plain ONNX Runtime, in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file

from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.backbone.loading import RANDOM, load_backbone
from pfedmma_deploy.benchmark import subjects
from pfedmma_deploy.benchmark.bundles import RandomBundles
from pfedmma_deploy.benchmark.load import start_cold
from pfedmma_deploy.benchmark.options import InferenceOptions
from pfedmma_deploy.benchmark.report import (
    Columns,
    Measure,
    Row,
    Section,
    latency,
    make_section,
    new_row,
    number,
    run_rounds,
    timed,
)
from pfedmma_deploy.benchmark.subjects import Subject, describe
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.runtime import Bundle
from pfedmma_deploy.runtime.bundle import VISION_MODEL

PLAIN = "onnxruntime fp32"
"""The peer that every rate is compared with first."""
TORCH = "torch eager fp32"
LONGEST_CALL = 2.0
"""Seconds. Batches whose one call takes the peer longer than this are left out: a rate is the same
as with the batch before, and a round would take minutes."""
FEWEST, MOST = 8, 256
"""Photographs per call, from files to labels."""
COLD_ROUNDS = 3
"""Fresh processes of each kind; odd, so that medians are of values that were seen."""
HOW = (
    "Rates are medians of short windows that all subjects take in turns, with quartiles; a ratio "
    "is the median of those within each round."
)

Peers = Callable[[Backbone, InferenceOptions], Sequence[Subject]]


def bench_inference(
    options: InferenceOptions, progress: Progress | None = None, peers: Peers | None = None
) -> Iterator[Row]:
    """Measure; rows come as they are found. What is written on the way is removed at the end.

    `peers` makes further subjects for the rates of a backbone.

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
            yield from self._load(bundles)
        if "clients" in wanted and given is None:
            yield from self._scaling()

    def _rates(self, bundles: Sequence[Bundle], peers: Sequence[Subject]) -> Iterator[Row]:
        """The device alone, at every batch size."""
        device, threads = self.options.device, self.options.threads
        precisions = ("fp32", "fp16") if device == "cuda" else ("fp32",)
        compared = [subjects.eager_torch(self.backbone, device, name) for name in precisions]
        compared += peers
        for name in precisions:
            compared.append(subjects.plain_onnx(self.backbone, self.folder, device, threads, name))
        compared += [subjects.exported(bundle, device, threads) for bundle in bundles]
        for row in self.measure_rates("rate", compared, PLAIN, self.options.batch_sizes):
            self.batch = row["batch_size"]
            if row["name"] == PLAIN:
                self.rate = row["images_per_second"]
            yield row

    def measure_rates(
        self,
        measure: Measure,
        compared: Sequence[Subject],
        peer: str,
        batch_sizes: Sequence[int],
        images: int | None = None,
    ) -> Iterator[Row]:
        """Rows of all subjects for every batch size, smallest batch first.

        Their `ratio` is the one to the subject labelled `peer`. A call takes `images`, or where
        that is None one batch.
        """
        name, slowest = self.backbone.name, 0.0
        for batch in sorted(batch_sizes):
            if slowest * batch > LONGEST_CALL:
                self.progress.note(
                    f"{name}: batch {batch} left out, one call takes about "
                    f"{slowest * batch:.0f} s here."
                )
                continue
            items = images or batch
            windows = run_rounds(
                {one.label: (one.prepare(batch), items) for one in compared},
                self.options.rounds,
                self.options.seconds,
                progress=self.progress,
                label=f"{name}: windows at batch {batch}",
            )
            for one in compared:
                row = new_row(measure, name, one.about, batch_size=batch)
                row |= timed(windows, one.label, peer)
                if items == 1:
                    row["latency"] = latency(windows[one.label].calls)
                yield row
            slowest = min(windows[peer].calls) / items

    def _end_to_end(self, bundles: Sequence[Bundle]) -> Iterator[Row]:
        """From JPEG files to labels: decoding, resizing and the model together."""
        device, threads = self.options.device, self.options.threads
        # One call should about fill a window: decoding runs ahead, and starts anew in every call.
        count = int(min(max(self.rate * self.options.seconds, FEWEST), MOST))
        photos = subjects.write_photos(self.folder / "photos", count)
        compared = [
            subjects.torch_photos(self.backbone, photos, device),
            subjects.onnx_photos(self.backbone, self.folder, photos, device, threads),
        ]
        compared += [subjects.bundle_photos(one, photos, device, threads) for one in bundles]
        yield from self.measure_rates("end-to-end", compared, TORCH, [self.batch], count)

    def _load(self, bundles: Sequence[Bundle]) -> Iterator[Row]:
        """Loading and answering once, in fresh processes: the peers, bundles, the command."""
        name, device = self.backbone.name, self.options.device
        (photo,) = subjects.write_photos(self.folder / "photo", 1)
        plain = subjects.plain_file(self.backbone, self.folder)
        # open_clip reads both towers from its file.
        weights = self.folder / "weights.safetensors"
        state = self.backbone.model.state_dict()
        save_file({key: value.contiguous() for key, value in state.items()}, weights)
        started: list[tuple[Row, Path, tuple[object, ...]]] = [
            ({"name": TORCH, "precision": "fp32"}, weights, ("torch", name, weights, device)),
            ({"name": PLAIN, "precision": "fp32"}, plain, ("onnx", plain, device)),
        ]
        for bundle in bundles:
            about, model, path = describe(bundle), bundle.path / VISION_MODEL, bundle.path
            whole = about | {"name": f"pfedmma predict, {about['name']}"}
            client = bundle.manifest.clients[-1].id
            command = ("predict", photo, "--model", path, "--client", client, "--device", device)
            started.append((about, model, ("bundle", path, device, 1, photo)))
            started.append((whole, model, (*command, "--json")))
        found = self._cold([arguments for *_, arguments in started])
        for (about, file, _), medians in zip(started, found, strict=True):
            size = file.stat().st_size
            yield new_row("load", name, about, batch_size=1, file_bytes=size, **medians)

    def _cold(self, started: Sequence[tuple[object, ...]]) -> list[Row]:
        """Of each process the medians of `COLD_ROUNDS` fresh ones, started in turns."""
        found: list[list[Row]] = [[] for _ in started]
        # In turns and not one kind after the other: a busy minute of the machine meets all alike.
        order = list(range(len(started))) * COLD_ROUNDS
        label = f"{self.backbone.name}: fresh processes"
        for place in self.progress.track(order, label, len(order)):
            found[place].append(start_cold(*map(str, started[place])))
        rows = []
        for seen in found:
            rows.append({key: median(one[key] for one in seen) for key in seen[0]})
        return rows

    def _scaling(self) -> Iterator[Row]:
        """Many clients in one file: does the time per image stay, and what does one more cost?"""
        form, options, name = self.options.forms[0], self.options, self.backbone.name
        bundles = []
        for count in sorted(options.scaling):
            self.progress.note(f"{name}: a file with {count:,} clients")
            try:
                bundles.append(Bundle.open(self.random.make(count, form)))
            except UsageError as error:  # too large a file; the smaller ones are still of interest
                self.progress.note(f"not measured: {error}")
                about = {"name": f"pfedmma {form.precision}", "precision": form.precision}
                about |= {"flavour": form.flavour}
                yield new_row("clients", name, about, clients=count, reason=str(error))
        (photo,) = subjects.write_photos(self.folder / "photo", 1)
        device, threads = options.device, options.threads
        cold = self._cold([("bundle", one.path, device, self.batch, photo) for one in bundles])
        # The peer takes part here too: rates of other rounds do not compare with these.
        compared = [subjects.plain_onnx(self.backbone, self.folder, device, threads)]
        compared += [subjects.exported(bundle, device, threads) for bundle in bundles]
        plain, *rates = self.measure_rates("clients", compared, PLAIN, [self.batch])
        yield plain
        for row, own, bundle in zip(rates, cold, bundles, strict=True):
            row |= {"memory": own["memory"], "peak_memory": own["peak_memory"]}
            row["file_bytes"] = (bundle.path / VISION_MODEL).stat().st_size
            more = row["clients"] - rates[0]["clients"]
            if more:
                row["bytes_per_client"] = int(own["memory"] - cold[0]["memory"]) // more
            yield row


_SUBJECT: Columns = {"model": ("name", 1), "clients": ("clients", 1)}
_RATES: Columns = {
    "batch": ("batch_size", 1),
    "images/s": ("images_per_second", 1),
    "quartiles": ("quartiles", 1),
}
_MEMORY: Columns = {
    "file, MB": ("file_bytes", 1e-6),
    "memory, MB": ("memory", 1e-6),
    "peak, MB": ("peak_memory", 1e-6),
    "a client more, MB": ("bytes_per_client", 1e-6),
}
_LATENCY: Columns = {
    "p50": ("p50", 1000),
    "p95": ("p95", 1000),
    "p99": ("p99", 1000),
    "calls": ("calls", 1),
}
_LOAD: Columns = {
    "import and load, s": ("load", 1),
    "first answer, s": ("first_answer", 1),
    **_MEMORY,
}
RATES = "rate of the model on the device"

_TABLES: Sequence[tuple[Measure, str, Columns, str]] = (
    (
        "rate",
        RATES,
        _RATES,
        "`pfedmma`: uint8 pixels in, normalised inside; every batch mixes clients. "
        "`torch eager`: open_clip's `encode_image`. `onnxruntime`: the same tower through "
        "`torch.onnx.export`, no adapters. Both take normalised floating-point pixels.",
    ),
    (
        "rate",
        "latency of one image on the device, in milliseconds",
        _LATENCY,
        "Of the calls at batch 1 above. No p99 from fewer than 100 calls.",
    ),
    (
        "end-to-end",
        "from JPEG files to labels",
        _RATES,
        "Photographs of 500 x 375 pixels. `pfedmma`: `Classifier.predict`. The others: open_clip's "
        "transform, image by image, then the model, as open_clip's README does it.",
    ),
    (
        "load",
        "load time and memory",
        _LOAD,
        "One image, each time in a fresh process. First answer: from the start of the process, "
        "imports included. torch loads both towers, as open_clip does. `pfedmma predict` is the "
        "whole command.",
    ),
    (
        "clients",
        "many clients in one file",
        _RATES,
        "Batches mix the clients. Memory: resident after such a batch, in a fresh process. A "
        "client more: what it adds to that, over the file with the fewest.",
    ),
)
"""Which rows stand in a table, its title, its columns and what a reader must know."""


def sections(rows: Sequence[Row], last: Columns | None = None) -> list[Section]:
    """The tables of an inference benchmark by backbone; those without rows are left out.

    `last` are further columns of tables of rates.
    """
    found = []
    for measure, title, columns, note in _TABLES:
        chosen = [row for row in rows if row["measure"] == measure]
        if columns is _LATENCY:
            chosen = [row for row in chosen if "latency" in row]
        for backbone in dict.fromkeys(row["backbone"] for row in chosen):
            own = [row for row in chosen if row["backbone"] == backbone]
            measured = [row for row in own if "reason" not in row]
            shown = {**_SUBJECT, **columns}
            if columns is _RATES:
                shown |= {**_peer_columns(measured), **_MEMORY, **(last or {})}
            values = [_cell_values(row) for row in measured]
            reasons = [f"{row['name']}: {row['reason']}" for row in own if "reason" in row]
            found.append(make_section(f"{backbone}: {title}", note, shown, values, reasons))
    return found


def _peer_columns(rows: Sequence[Row]) -> Columns:
    """Compared with: the models without adapters, and our own fp32 where that is one file."""
    columns: dict[str, tuple[str, float]] = {}
    for row in rows:
        name = row["name"]
        if "clients" not in row or (name == "pfedmma fp32" and row["measure"] != "clients"):
            columns[f"x {name}"] = (f"x {name}", 1)
    return columns


def _cell_values(row: Row) -> Row:
    """The row with latency, quartiles and the ratio to each peer at its top level."""
    values = {**row, **row.get("latency", {})}
    if "quartiles" in row:
        values["quartiles"] = " to ".join(number(rate) for rate in row["quartiles"])
    for label, found in row.get("ratios", {}).items():
        # A label also says the number of clients, which a heading leaves out.
        values[f"x {label.partition(',')[0]}"] = found["median"]
    return values
