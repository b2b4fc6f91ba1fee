"""`pfedmma train`: federated training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pfedmma_deploy.config import (
    TrainConfig,
    config_from_mapping,
    read_changes,
    read_options,
)

from .division import (
    PARTITIONS,
    ClientsFile,
    Superclasses,
    UnseenDomain,
    refuse_beside_file,
)
from .options import AsJson, Preset, Quiet, Verbose, free_folder, open_run, parse_settings
from .output import Output, open_output

_FIELDS = TrainConfig.__dataclass_fields__


def _option(name: str, text: str, metavar: str) -> Any:
    """An option that fills the field `name`; the help shows the default from `TrainConfig`."""
    default = _FIELDS[name].default
    shown = f" [default: {default}]" if isinstance(default, int | float | str) else ""
    return typer.Option(help=text + shown, metavar=metavar)


def train(
    context: typer.Context,
    data: Annotated[
        str | None,
        _option("data", "A sample, a known data set, a folder or a manifest.", "NAME|DIR|FILE"),
    ] = None,
    backbone: Annotated[
        str | None, _option("backbone", "pfedmma-tiny, or any open_clip model name.", "NAME")
    ] = None,
    pretrained: Annotated[
        str | None, _option("pretrained", "open_clip tag or weights file.", "TAG_OR_FILE")
    ] = None,
    method: Annotated[str | None, _option("method", "Federated method.", "NAME")] = None,
    clients: Annotated[int | None, _option("clients", "Number of clients.", "N")] = None,
    classes: Annotated[
        str | None,
        _option("classes", "Train on the first half of the classes, or on all.", "base-novel|all"),
    ] = None,
    partition: Annotated[
        str | None,
        _option(
            "partition",
            "How images are divided among clients.",
            PARTITIONS,
        ),
    ] = None,
    dirichlet_beta: Annotated[
        float | None, _option("dirichlet_beta", "Smaller is more skewed.", "BETA")
    ] = None,
    unseen_domain: UnseenDomain = None,
    superclasses: Superclasses = None,
    clients_file: ClientsFile = None,
    shots: Annotated[
        int | None, _option("shots", "Training images per class; 0 takes all.", "K")
    ] = None,
    rounds: Annotated[int | None, _option("rounds", "Rounds of training.", "N")] = None,
    local_epochs: Annotated[
        int | None, _option("local_epochs", "Epochs that a client trains in a round.", "N")
    ] = None,
    clients_per_round: Annotated[
        float | None,
        _option("clients_per_round", "Fraction of the clients that train in a round.", "FRACTION"),
    ] = None,
    seed: Annotated[int | None, _option("seed", "Seed of all randomness.", "N")] = None,
    batch_size: Annotated[int | None, _option("batch_size", "Images in a step.", "N")] = None,
    optimizer: Annotated[
        str | None, _option("optimizer", "How a client learns.", "sgd|adam|adamw")
    ] = None,
    lr: Annotated[float | None, _option("lr", "Learning rate.", "RATE")] = None,
    momentum: Annotated[float | None, _option("momentum", "Momentum of SGD.", "M")] = None,
    weight_decay: Annotated[float | None, _option("weight_decay", "Weight decay.", "DECAY")] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A hyper-parameter of the method, such as rank=8; `pfedmma methods` lists them.",
        ),
    ] = None,
    prompt: Annotated[
        str | None, _option("prompt", "Text around a class name; {} is its place.", "TEXT")
    ] = None,
    transform: Annotated[
        str | None,
        _option("transform", "Crop and flip training images at random, or not.", "random|none"),
    ] = None,
    views: Annotated[
        int | None,
        _option("views", "Draw this many crops per image once, and keep them; 0: afresh.", "N"),
    ] = None,
    autocast: Annotated[
        str | None, _option("autocast", "Precision of matrix products.", "none|bf16|fp16")
    ] = None,
    engine: Annotated[
        str | None,
        _option("engine", "Several clients in one pass, or one by one.", "cohort|sequential"),
    ] = None,
    compile_blocks: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Compile the blocks first.")
    ] = None,
    dropout: Annotated[
        float | None,
        _option("dropout", "Simulate: share of clients that fail in a round.", "FRACTION"),
    ] = None,
    cache: Annotated[
        bool | None,
        typer.Option("--cache/--no-cache", help="Reuse what the frozen blocks compute."),
    ] = None,
    logit_scale: Annotated[
        float | None,
        _option("logit_scale", "Factor on similarities. [default: the backbone's]", "FACTOR"),
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
    flags = {name: context.params.get(name) for name in _FIELDS}
    flags["compile"] = compile_blocks
    flags["parameters"] = parse_settings(parameters)
    flags["superclasses"] = superclasses and str(superclasses)
    flags["clients_file"] = clients_file and str(clients_file)
    refuse_beside_file(flags)
    with open_output(as_json=as_json, quiet=quiet) as output:
        if resume:
            folder = open_run(out).folder
            resolved = _resumed(folder, flags, config, preset)
        else:
            options = read_options(flags, config, preset)
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


def _resumed(
    folder: Path, flags: Mapping[str, object], file: Path | None, preset: str | None
) -> TrainConfig:
    """The stored configuration with what was given on top; training refuses what differs."""
    stored = open_run(folder).config.to_dict()
    changes = read_changes(flags, file, preset)
    given = {**changes.suggested, **changes.given}
    parameters = {**stored["parameters"], **given.pop("parameters", {})}
    return config_from_mapping({**stored, **given, "parameters": parameters})
