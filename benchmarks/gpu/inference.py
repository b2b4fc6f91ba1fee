"""Exported models on a GPU: rates beside torch, plain ONNX Runtime and the card's peak."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.plan import Plan, Reporter
from benchmarks.inference_table import compare_with_peak, compiled_torch, matmuls
from pfedmma_deploy.backbone.loading import RANDOM, load_backbone
from pfedmma_deploy.benchmark import subjects
from pfedmma_deploy.benchmark.inference import Bench
from pfedmma_deploy.benchmark.options import InferenceOptions
from pfedmma_deploy.benchmark.report import Contestant, Row, quartiles, run_rounds, timed
from pfedmma_deploy.benchmark.subjects import DTYPES, Subject
from pfedmma_deploy.export.export_config import ExportConfig, Flavour, Precision
from pfedmma_deploy.progress import Silent
from pfedmma_deploy.runtime import Bundle
from pfedmma_deploy.runtime.bundle import VISION_MODEL
from pfedmma_deploy.runtime.image_tower import LARGEST_BATCH, tensorrt_options
from pfedmma_deploy.runtime.providers import open_session, tensorrt_problem

COPIED = 2**28
"""Numbers that a copy moves from one place of the device's memory to another: a gigabyte in
fp32."""


class Notes(Silent):
    """Says what is being done, for the log."""

    def note(self, message: str) -> None:
        """See `Progress`."""
        print(message, flush=True)


def peak(plan: Plan, scratch: Path, report: Reporter) -> None:
    """What the card reaches: large matrix products by torch, and a copy within its memory."""
    n = plan.matmul
    count = COPIED if plan.device == "cuda" else n * n
    source = torch.randn(count, device=plan.device)
    target = torch.empty_like(source)
    copy = partial(target.copy_, source)
    contestants: dict[str, Contestant] = {"copy": (_waiting(copy, plan), 8.0 * count)}
    for name, dtype in DTYPES.items():
        left, right = (torch.randn(n, n, device=plan.device).to(dtype) for _ in range(2))
        product = partial(torch.mm, left, right)
        contestants[f"matmul {name}"] = (_waiting(product, plan), 2.0 * n**3)
    seen = run_rounds(contestants, plan.rounds, plan.seconds)
    for name, windows in seen.items():
        rate = quartiles(windows.rates)["median"]
        unit = "bytes_per_second" if name == "copy" else "flop_per_second"
        report({"measure": "peak", "name": f"torch's {name}", unit: rate})


def _waiting(work: Callable[[], object], plan: Plan) -> Callable[[], object]:
    """The same, and back when the device is done with it."""

    def call() -> None:
        work()
        if plan.device == "cuda":
            torch.cuda.synchronize()

    return call


def export(plan: Plan, scratch: Path, report: Reporter, *, place: int) -> None:
    """Write all models that later steps measure, so that none of their time is spent on it."""
    bench = open_bench(plan, plan.backbones[place], scratch)
    for form in plan.forms:
        make_bundle(bench, form)
    for precision in plain_precisions(plan):
        subjects.plain_file(bench.backbone, bench.folder, precision)


def open_bench(plan: Plan, backbone: str, scratch: Path) -> Bench:
    """A benchmark of one backbone whose models stay in `scratch` for the next step."""
    options = InferenceOptions(
        backbones=(backbone,),
        clients=plan.clients,
        scaling=plan.scaling,
        batch_sizes=plan.batch_sizes,
        precisions=(plan.forms[0][1],),
        bottleneck_dim=plan.bottleneck_dim,
        device=plan.device,
        seconds=plan.seconds,
        rounds=plan.rounds,
    )
    torch.set_num_threads(options.threads)
    folder = scratch / backbone
    folder.mkdir(parents=True, exist_ok=True)
    return Bench(options, load_backbone(backbone, RANDOM), folder, Notes())


def make_bundle(bench: Bench, form: tuple[Flavour, Precision]) -> Bundle:
    """The file with the plan's clients in one form; made where it is not there yet."""
    return Bundle.open(bench.random.make(bench.options.clients, ExportConfig(*form)))


def plain_precisions(plan: Plan) -> Sequence[str]:
    """In which open_clip's own tower is exported: those that bundles have, so bf16 is none."""
    return ("fp32", "fp16") if plan.device == "cuda" else ("fp32",)


def rates(plan: Plan, scratch: Path, report: Reporter, *, place: int) -> None:
    """Images per second at every batch size, all in turns, with the share of the peak."""
    bench = open_bench(plan, plan.backbones[place], scratch)
    device, threads = plan.device, bench.options.threads
    compared = [subjects.eager_torch(bench.backbone, device, name) for name in DTYPES]
    if plan.compiles:
        compared += compiled_torch(bench.backbone, bench.options)
    compared += matmuls(bench.options)
    for precision in plain_precisions(plan):
        compared.append(
            subjects.plain_onnx(bench.backbone, bench.folder, device, threads, precision)
        )
    for form in plan.forms:
        compared.append(named(subjects.exported(make_bundle(bench, form), device, threads), form))
    first = f"onnxruntime {plan.forms[0][1]}"
    for row in bench.measure_rates("rate", compared, first, plan.batch_sizes):
        models, peaks = compare_with_peak([row], device)
        for found in (*peaks, *models):
            report(found)


def named(subject: Subject, form: tuple[Flavour, Precision]) -> Subject:
    """The subject under a name that says its operators too: several forms are compared."""
    flavour, precision = form
    words = "fused" if flavour == "ort" else "plain"
    return replace(subject, about={**subject.about, "name": f"pfedmma {precision} {words}"})


def clients(plan: Plan, scratch: Path, report: Reporter) -> None:
    """One client in a file, or a hundred, or a thousand: the rate, and what one more costs."""
    bench = open_bench(plan, plan.backbones[0], scratch)
    bench.options = replace(bench.options, measures=("clients",), flavour=plan.forms[0][0])
    bench.batch = min(LARGEST_BATCH, max(plan.batch_sizes))
    for row in bench.run(None, ()):
        report(row)


def tensorrt(plan: Plan, scratch: Path, report: Reporter) -> None:
    """TensorRT beside CUDA on the same file, and how far its features are from CUDA's."""
    problem = tensorrt_problem()
    form: tuple[Flavour, Precision] = ("portable", "fp16")
    if problem is not None:
        report({"measure": "tensorrt", "name": "TensorRT", "reason": problem})
        return
    bench = open_bench(plan, plan.backbones[0], scratch)
    bundle = make_bundle(bench, form)
    file = bundle.file(VISION_MODEL)
    engine = open_session(file, "tensorrt", options=tensorrt_options(bundle.manifest))
    cuda = open_session(file, "cuda")
    sessions = {"tensorrt fp16": engine, "cuda fp16": cuda}
    feed = subjects.mixed_feeds(bundle, cuda, 32)[0]
    features = [np.asarray(session.run(None, feed)[0]) for session in sessions.values()]
    difference = float(np.abs(features[0] - features[1]).max())
    for batch in [size for size in plan.batch_sizes if size <= LARGEST_BATCH]:
        contestants: dict[str, Contestant] = {}
        for name, session in sessions.items():
            subject = subjects.in_session(bundle, session, "cuda")
            contestants[name] = (subject.prepare(batch), batch)
        windows = run_rounds(contestants, plan.rounds, plan.seconds)
        for name in contestants:
            row: Row = {"measure": "tensorrt", "name": name, "batch_size": batch}
            report({**row, **timed(windows, name, "cuda fp16"), "difference": difference})
