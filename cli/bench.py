"""`pfedmma bench`: how fast it is here, beside torch and plain ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from pfedmma_deploy.benchmark.options import MEASURES, InferenceOptions
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.export.export_config import Flavour, Precision, Storage
from pfedmma_deploy.system import available_cores, describe_environment

from .options import flag, split_names, split_numbers, switch, with_output
from .output import Output

if TYPE_CHECKING:
    from pfedmma_deploy.benchmark.report import Report

OF_TRAINING = {"train", "backbone", "threads", "out", "as_json", "quiet", "verbose"}
"""Options that count beside --train."""


@with_output
def bench(
    output: Output,
    context: typer.Context,
    model: Annotated[Path | None, flag("Bundle to measure, instead of backbones.", "DIR")] = None,
    backbone: Annotated[
        str, flag("Backbones, with random weights and adapters.", "NAME[,NAME]")
    ] = "pfedmma-tiny",
    measure: Annotated[str, flag("Which tables.", "NAME[,NAME]")] = ",".join(MEASURES),
    batch_sizes: Annotated[str, flag("Images per call.", "N[,N]")] = "1,8,32",
    clients: Annotated[int, flag("Clients in a file; batches mix them.", "N")] = 100,
    scaling: Annotated[
        str, flag("Clients in a file, for the table `clients`.", "N[,N]")
    ] = "1,100,1000",
    precision: Annotated[
        str | None, flag("[default: fp32,int8; fp32,fp16 on CUDA]", "NAME[,NAME]")
    ] = None,
    flavour: Annotated[
        Flavour | None, flag("As for export. [default: that of each precision]")
    ] = None,
    weights: Annotated[Storage, flag("Storage of the weights.")] = "fp32",
    bottleneck_dim: Annotated[int, flag("Rank of the random adapters.", "R")] = 32,
    device: Annotated[str, flag("Where to compute.", "auto|cpu|cuda")] = "auto",
    threads: Annotated[int | None, flag("CPU threads. [default: all cores]", "N")] = None,
    seconds: Annotated[float, flag("Length of one window of measurement.", "S")] = 0.5,
    rounds: Annotated[int, flag("Windows of every subject.", "N")] = 5,
    train: Annotated[bool, switch("--train", "Measure rounds of training instead.")] = False,
    out: Annotated[Path | None, flag("Write the tables there, .md and .json.", "DIR")] = None,
) -> None:
    """Measure exported models beside torch and plain ONNX Runtime, in one run.

    With --train: rounds of training beside the naive baseline, which recomputes everything.

    Rates are medians of short windows taken in turns; a ratio compares windows of the same round.
    Tables: rate (device only, latency at batch 1), end-to-end (JPEG files to labels), load (time
    and memory in a fresh process), clients (1 to 1,000 clients in one file).

    \b
    Examples:
      pfedmma bench
      pfedmma bench --model exports/cifar10-sample --measure rate,end-to-end
      pfedmma bench --backbone ViT-B-32,ViT-B-16 --out benchmarks
      pfedmma bench --backbone ViT-B-16 --device cuda --batch-sizes 1,32,256 --precision fp16
      pfedmma bench --train --backbone pfedmma-tiny,ViT-B-16
    """
    cores = available_cores() if threads is None else threads
    names = split_names(backbone) or []
    if train:
        for name in context.params.keys() - OF_TRAINING:
            source = context.get_parameter_source(name)
            if source is not None and source.name == "COMMANDLINE":
                raise UsageError(
                    f"--train measures rounds: --{name.replace('_', '-')} is for inference; "
                    "leave out one of them"
                )
        _print(_measure_training(names, cores, output), out, output)
        return
    # Checked first: none of it needs a library that takes seconds to load.
    options = InferenceOptions(
        backbones=tuple(names),
        model=model,
        measures=tuple(split_names(measure) or ()),
        batch_sizes=tuple(split_numbers("--batch-sizes", batch_sizes, "1,8,32")),
        clients=clients,
        scaling=tuple(split_numbers("--scaling", scaling, "1,8,32")),
        flavour=flavour,
        weights=weights,
        bottleneck_dim=bottleneck_dim,
        threads=cores,
        seconds=seconds,
        rounds=rounds,
        precisions=cast("tuple[Precision, ...]", tuple(split_names(precision) or ("fp32",))),
    )
    from pfedmma_deploy.runtime.providers import resolve_device

    found, reason = resolve_device(device)
    if reason:
        output.note(f"note: measuring the CPU: {reason}")
    options = replace(options, device="cuda" if found == "cuda" else "cpu")
    if precision is None:
        options = replace(options, precisions=("fp32", "fp16" if found == "cuda" else "int8"))
    _print(_measure(options, output), out, output)


def _measure(options: InferenceOptions, output: Output) -> Report:
    import torch

    from pfedmma_deploy.benchmark.inference import HOW, bench_inference, sections
    from pfedmma_deploy.benchmark.report import Report

    gpu = torch.cuda.get_device_name(0) if options.device == "cuda" else None
    environment = describe_environment(options.threads, gpu=gpu)
    rows = list(bench_inference(options, output.progress))
    command = f"pfedmma bench {options.to_command()}"
    return Report("inference", command, HOW, environment, rows, sections(rows))


def _measure_training(backbones: Sequence[str], threads: int, output: Output) -> Report:
    from pfedmma_deploy.benchmark.report import Report
    from pfedmma_deploy.benchmark.training import (
        HOW,
        measure_training,
        round_section,
        training_gpu,
    )

    environment = describe_environment(threads, gpu=training_gpu())
    rows = measure_training(backbones, threads, output.progress)
    command = f"pfedmma bench --train --backbone {','.join(backbones)}"
    return Report("training", command, HOW, environment, rows, [round_section(rows)])


def _print(report: Report, out: Path | None, output: Output) -> None:
    for section in report.tables:
        output.table(section.columns, section.cells, section.title)
        output.say("")
    if out is not None:
        for path in report.write(out):
            output.note(f"Written: {path}")
    output.result(report.to_dict())
