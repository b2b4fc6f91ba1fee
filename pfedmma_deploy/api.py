"""The functions behind `pfedmma train` and `pfedmma evaluate`, for programs.

`personalize`, `export`, `Classifier` and the others stand where they are defined;
`pfedmma_deploy` has all of them under one name each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

from pfedmma_deploy.backbone.loading import load_backbone
from pfedmma_deploy.config import (
    Autocast,
    Classes,
    Optimizer,
    Scalar,
    Scheme,
    Transform,
    read_changes,
    read_options,
)
from pfedmma_deploy.data.datasets import load_dataset
from pfedmma_deploy.data.registry import register_dataset
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.evaluation.zero_shot import ZeroShot, evaluate_zero_shot
from pfedmma_deploy.federated.evaluate import RunEvaluation, evaluate_run
from pfedmma_deploy.federated.rounds import Callbacks, ignore
from pfedmma_deploy.federated.train import TrainResult
from pfedmma_deploy.federated.train import train as train_run
from pfedmma_deploy.methods.registry import resolve_run
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.runtime.bundle import checked_strength
from pfedmma_deploy.store.run import Run, find_run, free_folder
from pfedmma_deploy.types import Dataset

Record = dict[str, Any]


class TrainOptions(TypedDict, total=False):
    """The options of `pfedmma train` by name; `pfedmma_deploy.config` explains each."""

    backbone: str
    pretrained: str | None
    method: str
    aggregate: str | None
    partition: Scheme
    clients: int
    classes: Classes
    dirichlet_beta: float
    shots: int
    unseen_domain: str | None
    superclasses: str | None
    clients_file: str | None
    rounds: int
    local_epochs: int
    clients_per_round: float
    seed: int
    batch_size: int
    optimizer: Optimizer
    lr: float
    momentum: float
    weight_decay: float
    parameters: Mapping[str, Scalar]
    """What the command sets with `--set`."""
    prompt: str
    transform: Transform
    views: int
    cache: bool
    token_shortcuts: bool
    client_batching: bool
    autocast: Autocast
    compile: bool
    client_dropout: float
    dp_clip: float | None
    dp_noise: float | None
    guard: float
    logit_scale: float | None


def train(
    data: str | Path | Dataset | None = None,
    *,
    out: str | Path | None = None,
    preset: Literal["paper", "quickstart"] | None = None,
    config: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    on_round: Callable[[Record], None] = ignore,
    on_client: Callable[[Record], None] = ignore,
    **options: Unpack[TrainOptions],
) -> TrainResult:
    """Train a federation, as `pfedmma train` does, with its options, defaults and errors.

    Args:
        data: a sample, a known data set, a folder, a manifest, or a `Dataset`, which is registered
            under its name (`register_dataset`).
        out: the run folder; None takes `runs/DATA`, or the newest run with `resume`.
        preset: `paper` (the defaults) or `quickstart` (values for pfedmma-tiny).
        config: TOML file of options; those given here win over it.
        resume: continue the run in `out`, bit-identical to one that never stopped.
        progress: draws progress and is told of warnings; None is silent.
        on_round: called after each round with its line of `rounds.jsonl`: `round` (from 1),
            `clients`, `loss`, `val_accuracy` in percent, bytes, seconds.
        on_client: called after each client's part of a round with `round`, `client`, `loss` and
            `val_accuracy`.
        **options: `TrainOptions`; None is as if it were left out.

    Returns:
        The run, its seconds, and bytes per client and round.

    Raises:
        PfedmmaError: anything that is missing or does not fit; `UsageError` for options.

    Example:
        >>> from pfedmma_deploy import train
        >>> losses = []
        >>> result = train("photos", preset="quickstart", clients=2, rounds=1,
        ...                on_round=lambda record: losses.append(record["loss"]))
        >>> result.run.folder.as_posix(), result.run.client_ids, len(losses)
        ('runs/photos', ['0', '1'], 1)
    """
    progress = progress or Silent()
    if isinstance(data, Dataset):
        data = register_dataset(data).name
    flags = {**options, "data": None if data is None else str(data)}
    file = None if config is None else Path(config)
    given = (read_changes if resume else read_options)(flags, file, preset)
    for warning in given.warnings:
        progress.note(f"warning: {warning}")
    if resume:
        run = find_run(out)
        resolved, folder = run.config_with(given), run.folder
    else:
        resolved = resolve_run(given)
        folder = free_folder(resolved.data) if out is None else Path(out)
    callbacks = Callbacks(on_round, on_client)
    return train_run(resolved, folder, resume=resume, progress=progress, callbacks=callbacks)


@overload
def evaluate(
    run: Run | str | Path | None = None,
    *,
    strength: float | None = None,
    progress: Progress | None = None,
) -> RunEvaluation: ...


@overload
def evaluate(
    run: None = None,
    *,
    data: str | Path | Dataset,
    backbone: str,
    pretrained: str | None = None,
    prompt: str = "a photo of a {}.",
    progress: Progress | None = None,
) -> ZeroShot: ...


@overload
def evaluate(
    run: Run | str | Path | None = None,
    *,
    strength: float | None = None,
    data: str | Path | Dataset | None = None,
    backbone: str | None = None,
    pretrained: str | None = None,
    prompt: str = "a photo of a {}.",
    progress: Progress | None = None,
) -> RunEvaluation | ZeroShot: ...


def evaluate(
    run: Run | str | Path | None = None,
    *,
    strength: float | None = None,
    data: str | Path | Dataset | None = None,
    backbone: str | None = None,
    pretrained: str | None = None,
    prompt: str = "a photo of a {}.",
    progress: Progress | None = None,
) -> RunEvaluation | ZeroShot:
    """Compare every client of a run with zero-shot CLIP, as `pfedmma evaluate` does.

    Or, with `data` and `backbone`, measure a backbone as it is, without training.

    Args:
        run: a run or its folder; None takes the newest in `runs`.
        strength: of every client, 0 to 1.5, 1 being as trained; None takes each one's own.
        data: instead of a run, any data that `train` takes.
        backbone: with `data`: an open_clip name.
        pretrained: open_clip tag or weights file; None takes the backbone's default.
        prompt: text around a class name, with `data`.
        progress: draws progress; None is silent.

    Returns:
        Accuracies in percent by client, and their means; or zero-shot accuracy on `data`.

    Raises:
        UsageError: options that exclude each other, or one without the other.
        PfedmmaError: anything that is missing or does not fit.

    Example:
        >>> from pfedmma_deploy import evaluate
        >>> found = evaluate("runs/photos")
        >>> sorted(found.personalized), 0 <= found.personalized_mean.local <= 100
        (['0', '1'], True)
        >>> evaluate(data="photos", backbone="pfedmma-tiny").images
        48
    """
    if data is None and backbone is None:
        given = None if strength is None else checked_strength(strength)
        return evaluate_run(find_run(run), strength=given, progress=progress)
    if data is None or backbone is None:
        missing = "--backbone" if backbone is None else "--data"
        raise UsageError(f"zero-shot accuracy needs --data and --backbone: {missing} is missing")
    if strength is not None:
        raise UsageError("--strength belongs to a run's clients: leave it out with --data")
    if run is not None:
        raise UsageError("--run and --data exclude each other: a run names its own data")
    dataset = load_dataset(data, progress=progress)
    model = load_backbone(backbone, pretrained)
    return evaluate_zero_shot(model, dataset, prompt, progress=progress)
