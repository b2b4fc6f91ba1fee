"""`pfedmma train`: federated training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    Preset,
    flag,
    open_run,
    parse_settings,
    switch,
    with_output,
    with_run_options,
)
from .output import Output

if TYPE_CHECKING:
    from pfedmma_deploy.config import TrainConfig


@with_run_options
@with_output
def train(
    output: Output,
    options: Mapping[str, Any],
    preset: Preset = None,
    config: Annotated[Path | None, flag("Options from a file, one a line.", "FILE.toml")] = None,
    out: Annotated[Path | None, flag("Run folder. [default: runs/DATA]", "DIR")] = None,
    profile: Annotated[
        Path | None, flag("Write a trace of where the time goes.", "FILE.json")
    ] = None,
    resume: Annotated[
        bool, switch("--resume", "Continue the run in --out, or else the newest.")
    ] = False,
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
    flags = dict(options)
    if "parameters" in flags:
        flags["parameters"] = parse_settings(flags["parameters"])
    from pfedmma_deploy.config import read_changes, read_options

    given = (read_changes if resume else read_options)(flags, config, preset)
    for warning in given.warnings:
        output.note(f"warning: {warning}")
    if resume:
        run = open_run(out)
        folder, resolved = run.folder, run.config_with(given)
    else:
        from pfedmma_deploy.methods.registry import resolve_run
        from pfedmma_deploy.store.run import free_folder

        resolved = resolve_run(given)
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
    if result.privacy is not None:
        output.say(
            f"Differential privacy of what is shared: epsilon {result.privacy['epsilon']:.2f} at"
            f" delta {result.privacy['delta']:g}. Adapters and figures of clients have no noise."
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
            "privacy": result.privacy,
            "seconds": result.seconds,
        }
    )
