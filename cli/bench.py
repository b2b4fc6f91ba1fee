"""`pfedmma bench`: how fast it is here, beside torch and plain ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from pfedmma_deploy.benchmark.options import MEASURES, InferenceOptions
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.export.form import Flavour, Precision, Storage
from pfedmma_deploy.system import available_cores

from .options import AsJson, Quiet, Verbose, split_names
from .output import Output, open_output


def bench(
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
    torch_compile: Annotated[
        bool, typer.Option(help="Measure torch.compile too, which first compiles for a while.")
    ] = True,
    train: Annotated[
        bool, typer.Option("--train", help="Measure training instead: rounds, memory, scale.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the tables there, .md and .json.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure exported models beside torch and plain ONNX Runtime, in one run.

    With --train: rounds of training beside the straight reading of the paper, many clients.

    Rates are medians of short windows taken in turns; a ratio compares windows of the same round.
    Tables: rate (device only, latency at batch 1), end-to-end (JPEG files to labels), load (time
    and memory in a fresh process), clients (1 to 1,000 clients in one file).

    \b
    Examples:
      pfedmma bench
      pfedmma bench --model exports/cifar10-sample --measure rate,end-to-end
      pfedmma bench --backbone ViT-B-32,ViT-B-16 --out benchmarks
      pfedmma bench --backbone ViT-B-16 --device cuda --batch-sizes 1,32,256 --precision fp16
      pfedmma bench --train --backbone pfedmma-tiny,ViT-B-16 --scaling 1000,10000
    """
    if train:
        with open_output(as_json=as_json, quiet=quiet) as output:
            names = split_names(backbone) or []
            many = _numbers("--scaling", scaling)
            _measure_training(names, many, threads or available_cores(), out, output)
        return
    # Checked first: none of it needs a library that takes seconds to load.
    options: dict[str, Any] = {
        "backbones": tuple(split_names(backbone) or ()),
        "model": model,
        "measures": tuple(split_names(measure) or ()),
        "batch_sizes": _numbers("--batch-sizes", batch_sizes),
        "clients": clients,
        "scaling": _numbers("--scaling", scaling),
        "flavour": flavour,
        "weights": weights,
        "bottleneck_dim": bottleneck_dim,
        "threads": available_cores() if threads is None else threads,
        "seconds": seconds,
        "rounds": rounds,
        "compiled": torch_compile,
        "precisions": _precisions(precision or "fp32"),
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
    from pfedmma_deploy.benchmark.inference import bench_inference, gpu_name
    from pfedmma_deploy.benchmark.report import markdown_report, write_report
    from pfedmma_deploy.benchmark.tables import sections
    from pfedmma_deploy.system import describe_environment

    environment = describe_environment(options.threads, gpu=gpu_name(options.device))
    rows = list(bench_inference(options, output.progress))
    tables = sections(rows)
    for section in tables:
        output.table(section.columns, section.cells, section.title)
        output.say("")
    values = {"rows": [row.to_dict() for row in rows], "environment": environment.to_dict()}
    if out is not None:
        name = f"inference-{environment.machine}"
        text = markdown_report(
            f"Inference on {environment.machine}", _command(options), environment, tables
        )
        for path in write_report(out, name, text, values):
            output.note(f"Written: {path}")
    output.result(values)


def _measure_training(
    backbones: list[str], clients: tuple[int, ...], threads: int, out: Path | None, output: Output
) -> None:
    from pfedmma_deploy.benchmark.report import markdown_report, write_report
    from pfedmma_deploy.benchmark.training_run import bench_training_tables
    from pfedmma_deploy.system import describe_environment

    environment = describe_environment(threads)
    rows, tables = bench_training_tables(backbones, clients, threads, output.progress)
    for section in tables:
        output.table(section.columns, section.cells, section.title)
        output.say("")
    values = {"rows": rows, "environment": environment.to_dict()}
    if out is not None:
        command = (
            f"pfedmma bench --train --backbone {','.join(backbones)} "
            f"--scaling {','.join(map(str, clients))}"
        )
        how = "The subjects run one after the other, each in a process of its own."
        title = f"Training on {environment.machine}"
        text = markdown_report(title, command, environment, tables, how)
        for path in write_report(out, f"training-{environment.machine}", text, values):
            output.note(f"Written: {path}")
    output.result(values)


def _command(options: InferenceOptions) -> str:
    """The command that repeats a measurement, without what stands in the environment."""
    source = ",".join(options.backbones) if options.model is None else "a bundle"
    parts = [
        f"pfedmma bench {'--backbone' if options.model is None else '--model'} {source}",
        f"--measure {','.join(options.measures)}",
        f"--batch-sizes {','.join(map(str, options.batch_sizes))}",
        f"--clients {options.clients} --scaling {','.join(map(str, options.scaling))}",
        f"--precision {','.join(options.precisions)} --weights {options.weights}",
        f"--device {options.device} --seconds {options.seconds:g} --rounds {options.rounds}",
    ]
    return " ".join(parts)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UsageError(f"{option} takes whole numbers such as 1,8,32, not {text!r}") from None


def _precisions(text: str) -> tuple[Precision, ...]:
    names = tuple(split_names(text) or ())
    for name in names:
        if name not in get_args(Precision):
            known = ", ".join(get_args(Precision))
            raise UsageError(f"--precision must be among {known}, not {name!r}")
    return names  # type: ignore[return-value]
