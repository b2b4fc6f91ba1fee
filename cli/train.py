"""`pfedmma train`: federated training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfedmma_deploy.config import DEFAULTS

from .options import (
    NO_PARTITION,
    AsJson,
    BackboneName,
    Data,
    LocalEpochs,
    PartitionOptions,
    Preset,
    Pretrained,
    Quiet,
    Rounds,
    Seed,
    Verbose,
    free_folder,
    open_run,
    option,
    parse_settings,
    with_partition,
)
from .output import Output, open_output

if TYPE_CHECKING:
    from pfedmma_deploy.config import Options, TrainConfig

_OLD_NAMES = ("dropout", "engine")


@with_partition
def train(
    context: typer.Context,
    data: Data = None,
    backbone: BackboneName = None,
    pretrained: Pretrained = None,
    method: Annotated[str | None, option("method", "Federated method.", "NAME")] = None,
    partition: PartitionOptions = NO_PARTITION,
    aggregate: Annotated[
        str | None,
        option("aggregate", "How the server combines updates. [default: the method's]", "NAME"),
    ] = None,
    rounds: Rounds = None,
    local_epochs: LocalEpochs = None,
    clients_per_round: Annotated[
        float | None,
        option("clients_per_round", "Fraction of the clients that train in a round.", "FRACTION"),
    ] = None,
    seed: Seed = None,
    batch_size: Annotated[int | None, option("batch_size", "Images in a step.", "N")] = None,
    optimizer: Annotated[
        str | None, option("optimizer", "How a client learns.", "sgd|adam|adamw")
    ] = None,
    lr: Annotated[float | None, option("lr", "Learning rate.", "RATE")] = None,
    momentum: Annotated[float | None, option("momentum", "Momentum of SGD.", "M")] = None,
    weight_decay: Annotated[float | None, option("weight_decay", "Weight decay.", "DECAY")] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A hyper-parameter of the method, such as rank=8; `pfedmma methods` lists them.",
        ),
    ] = None,
    prompt: Annotated[
        str | None, option("prompt", "Text around a class name; {} is its place.", "TEXT")
    ] = None,
    transform: Annotated[
        str | None,
        option("transform", "Crop and flip training images at random, or not.", "random|none"),
    ] = None,
    views: Annotated[
        int | None,
        option("views", "Draw this many crops per image once, and keep them; 0: afresh.", "N"),
    ] = None,
    autocast: Annotated[
        str | None, option("autocast", "Precision of matrix products.", "none|bf16|fp16")
    ] = None,
    client_batching: Annotated[
        bool | None,
        typer.Option(
            "--client-batching/--no-client-batching",
            help="Train several clients in one pass, or one by one.",
        ),
    ] = None,
    compile_blocks: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Compile the blocks first.")
    ] = None,
    client_dropout: Annotated[
        float | None,
        option("client_dropout", "Simulate: share of clients that fail in a round.", "FRACTION"),
    ] = None,
    cache: Annotated[
        bool | None,
        typer.Option("--cache/--no-cache", help="Keep the activations of the frozen blocks."),
    ] = None,
    token_shortcuts: Annotated[
        bool | None,
        typer.Option(
            "--token-shortcuts/--no-token-shortcuts",
            help="Compute no token that cannot change a feature.",
        ),
    ] = None,
    logit_scale: Annotated[
        float | None,
        option("logit_scale", "Factor on similarities. [default: the backbone's]", "FACTOR"),
    ] = None,
    preset: Preset = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Options from a file, one a line.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder. [default: runs/DATA]")
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Write a trace of where the time goes."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out, or else the newest.")
    ] = False,
    # Old names, accepted for one version.
    dropout: Annotated[float | None, typer.Option(hidden=True)] = None,
    engine: Annotated[str | None, typer.Option(hidden=True)] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a federation of clients.

    The run holds one shared projection and one adapter per client.

    An option given here wins over --config, --config over --preset, --preset over the defaults.
    Stop with Ctrl-C at any time and continue with --resume.

    \b
    Examples:
      pfedmma train --preset quickstart
      pfedmma train --preset quickstart --data my_photos --clients 3
      pfedmma train --data my_photos --backbone ViT-B-16 --pretrained openai
      pfedmma train --data sites --partition folders --backbone pfedmma-tiny --out runs/sites
      pfedmma train --preset quickstart --data my_photos --clients-file clients.toml
      pfedmma train --resume --out runs/sites
    """
    flags = {name: context.params.get(name) for name in (*DEFAULTS, *_OLD_NAMES)}
    flags["compile"] = compile_blocks
    flags["parameters"] = parse_settings(parameters)
    with open_output(as_json=as_json, quiet=quiet) as output:
        from pfedmma_deploy.config import read_changes, read_options

        options = (read_changes if resume else read_options)(flags, config, preset)
        for warning in options.warnings:
            output.note(f"warning: {warning}")
        if resume:
            folder = open_run(out).folder
            resolved = _resumed(folder, options)
        else:
            from pfedmma_deploy.methods.registry import resolve_run

            resolved = resolve_run(options)
            folder = out or free_folder(resolved.data)
        try:
            with _profiled(profile, output):
                _train(resolved, folder, resume, output)
        except KeyboardInterrupt:
            output.note(f"Stopped. Continue with: pfedmma train --resume --out {folder}")
            raise typer.Exit(130) from None


@contextlib.contextmanager
def _profiled(file: Path | None, output: Output) -> Iterator[None]:
    """Record what runs, for chrome://tracing or ui.perfetto.dev, and show what takes longest."""
    if file is None:
        yield
        return
    from torch.profiler import profile

    with profile() as profiler:
        yield
    profiler.export_chrome_trace(str(file))
    table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=12)
    output.note(f"{table}\nTrace: {file} (open it in chrome://tracing or ui.perfetto.dev)")


def _train(config: TrainConfig, folder: Path, resume: bool, output: Output) -> None:
    scale = config.parameters.get("scale", 1.0)
    if config.backbone == "pfedmma-tiny" and isinstance(scale, float) and scale <= 1e-3:
        output.note(
            "note: pfedmma-tiny hardly moves with the paper's values for full-size models; "
            "--preset quickstart has values for it."
        )
    from pfedmma_deploy.federated.train import train as train_federation

    result = train_federation(config, folder, resume=resume, progress=output.progress)
    sent, received = result.bytes_up_per_client_round, result.bytes_down_per_client_round
    traffic = (
        f"{sent:,} bytes each way" if sent == received else f"{sent:,} bytes up, {received:,} down"
    )
    output.say(
        f"Trained {len(result.run.client_ids)} clients for {config.rounds} rounds "
        f"in {result.seconds:.1f} s; {traffic} per client and round."
    )
    output.say(f"Run: {result.run.folder}")
    output.note("Next: pfedmma evaluate, pfedmma personalize --client ID, pfedmma export")
    output.result(
        {
            "run": str(result.run.folder),
            "clients": result.run.client_ids,
            "rounds": config.rounds,
            "bytes_up_per_client_round": sent,
            "bytes_down_per_client_round": received,
            "seconds": result.seconds,
        }
    )


def _resumed(folder: Path, changes: Options) -> TrainConfig:
    """The stored configuration with what was given on top; training refuses what differs."""
    from pfedmma_deploy.config import config_from_mapping

    stored = open_run(folder).config.to_options()
    given = {**changes.suggested, **changes.given}
    parameters = {**stored["parameters"], **given.pop("parameters", {})}
    return config_from_mapping({**stored, **given, "parameters": parameters})
