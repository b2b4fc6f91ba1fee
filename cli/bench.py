"""`pfedmma bench`: how fast it is here, beside torch and plain ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfedmma_deploy.benchmark.options import MEASURES, InferenceOptions
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.export.export_config import Flavour, Storage
from pfedmma_deploy.system import available_cores, describe_environment

from .options import AsJson, Quiet, Verbose, split_names
from .output import Output, open_output

if TYPE_CHECKING:
    from pfedmma_deploy.benchmark.report import Section
    from pfedmma_deploy.system import Environment

OF_TRAINING = {"train", "backbone", "threads", "out", "as_json", "quiet", "verbose"}
"""Options that count beside --train."""


def bench(
    context: typer.Context,
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Bundle to measure, instead of backbones.")
    ] = None,
    backbone: Annotated[
        str,
        typer.Option(metavar="NAME[,NAME]", help="Backbones, with random weights and adapters."),
    ] = "pfedmma-tiny",
    measure: Annotated[str, typer.Option(metavar="NAME[,NAME]", help="Which tables.")] = ",".join(
        MEASURES
    ),
    batch_sizes: Annotated[str, typer.Option(metavar="N[,N]", help="Images per call.")] = "1,8,32",
    clients: Annotated[
        int, typer.Option(metavar="N", help="Clients in a file; batches mix them.")
    ] = 100,
    scaling: Annotated[
        str, typer.Option(metavar="N[,N]", help="Clients in a file, for the table `clients`.")
    ] = "1,100,1000",
    precision: Annotated[
        str | None,
        typer.Option(metavar="NAME[,NAME]", help="[default: fp32,int8; fp32,fp16 on CUDA]"),
    ] = None,
    flavour: Annotated[
        Flavour | None, typer.Option(help="As for export. [default: that of each precision]")
    ] = None,
    weights: Annotated[Storage, typer.Option(help="Storage of the weights.")] = "fp32",
    bottleneck_dim: Annotated[
        int, typer.Option(metavar="R", help="Rank of the random adapters.")
    ] = 32,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", help="Where to compute.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="CPU threads. [default: all cores]")
    ] = None,
    seconds: Annotated[
        float, typer.Option(metavar="S", help="Length of one window of measurement.")
    ] = 0.5,
    rounds: Annotated[int, typer.Option(metavar="N", help="Windows of every subject.")] = 5,
    train: Annotated[
        bool, typer.Option("--train", help="Measure rounds of training instead.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the tables there, .md and .json.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
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
    used = available_cores() if threads is None else threads
    names = split_names(backbone) or []
    if train:
        for name in context.params.keys() - OF_TRAINING:
            source = context.get_parameter_source(name)
            if source is not None and source.name == "COMMANDLINE":
                raise UsageError(
                    f"--train measures rounds: --{name.replace('_', '-')} is for inference; "
                    "leave out one of them"
                )
        with open_output(as_json=as_json, quiet=quiet) as output:
            _measure_training(names, used, out, output)
        return
    # Checked first: none of it needs a library that takes seconds to load.
    options: dict[str, Any] = {
        "backbones": tuple(names),
        "model": model,
        "measures": tuple(split_names(measure) or ()),
        "batch_sizes": _numbers("--batch-sizes", batch_sizes),
        "clients": clients,
        "scaling": _numbers("--scaling", scaling),
        "flavour": flavour,
        "weights": weights,
        "bottleneck_dim": bottleneck_dim,
        "threads": used,
        "seconds": seconds,
        "rounds": rounds,
        "precisions": tuple(split_names(precision) or ("fp32",)),
    }
    InferenceOptions(**options)
    with open_output(as_json=as_json, quiet=quiet) as output:
        from pfedmma_deploy.runtime.providers import resolve_device

        options["device"], reason = resolve_device(device)
        if reason:
            output.note(f"note: measuring the CPU: {reason}")
        if precision is None:
            options["precisions"] = ("fp32", "fp16" if options["device"] == "cuda" else "int8")
        _measure(InferenceOptions(**options), out, output)


def _measure(options: InferenceOptions, out: Path | None, output: Output) -> None:
    import torch

    from pfedmma_deploy.benchmark.inference import bench_inference
    from pfedmma_deploy.benchmark.report import IN_TURNS, sections

    gpu = torch.cuda.get_device_name(0) if options.device == "cuda" else None
    environment = describe_environment(options.threads, gpu=gpu)
    rows = list(bench_inference(options, output.progress))
    values = [row.to_dict() for row in rows]
    command = f"pfedmma bench {options.to_command()}"
    _report(output, out, "inference", command, environment, values, sections(rows), IN_TURNS)


def _measure_training(
    backbones: Sequence[str], threads: int, out: Path | None, output: Output
) -> None:
    from pfedmma_deploy.benchmark.training import HOW, measure_training, round_section

    environment = describe_environment(threads)
    rows = list(measure_training(backbones, threads, output.progress))
    command = f"pfedmma bench --train --backbone {','.join(backbones)}"
    _report(output, out, "training", command, environment, rows, [round_section(rows)], HOW)


def _report(
    output: Output,
    out: Path | None,
    kind: str,
    command: str,
    environment: Environment,
    rows: Sequence[Mapping[str, Any]],
    tables: Sequence[Section],
    how: str,
) -> None:
    from pfedmma_deploy.benchmark.report import write_report

    for section in tables:
        output.table(section.columns, section.cells, section.title)
        output.say("")
    if out is not None:
        for path in write_report(out, kind, command, environment, rows, tables, how):
            output.note(f"Written: {path}")
    output.result({"rows": rows, "environment": environment.to_dict()})


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UsageError(f"{option} takes whole numbers such as 1,8,32, not {text!r}") from None
