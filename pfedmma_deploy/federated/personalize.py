"""`pfedmma personalize`: from the global shared projection to one client's own model.

A known client continues from the adapter that the federation left it with; a new one starts from
the method's common initial state around the global shared projection. Its local layers are
fine-tuned on its own images; its copy of the shared part only when asked for.
"""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pfedmma_deploy.adapters.base import KEPT, Adapter
from pfedmma_deploy.data.datasets import ConcatDataset, load_dataset
from pfedmma_deploy.data.federation import build_client
from pfedmma_deploy.errors import UsageError, nearest
from pfedmma_deploy.evaluation.accuracy import Accuracy
from pfedmma_deploy.federated.evaluate import open_scorer
from pfedmma_deploy.federated.session import Session, open_run_session
from pfedmma_deploy.federated.settle import settled
from pfedmma_deploy.federated.train import client_config
from pfedmma_deploy.methods.base import Tensors, state_to_dict
from pfedmma_deploy.methods.client_run import ClientRun
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.store.run import Run, StoredClient, find_run
from pfedmma_deploy.types import ClientData, Dataset, Federation, Scope

DEFAULT_EPOCHS = 4


@dataclass(frozen=True)
class FineTuned:
    """A client's model before and after, and what it was fine-tuned on."""

    client: ClientData
    is_new: bool
    session: Session
    """The run's, with the client's own images where it brought some."""
    before: tuple[Tensors, Any, float]
    """Tensors, the method's state, and the strength at which the client answered."""
    after: tuple[Tensors, Any, float]
    loss: float
    """Mean training loss over the fine-tuning."""
    seconds: float


@dataclass(frozen=True)
class PersonalizeResult:
    """Accuracies of one client: zero-shot CLIP, as it started, and after fine-tuning."""

    client: str
    is_new: bool
    zero_shot: Accuracy
    before: Accuracy
    after: Accuracy
    """At `strength`."""
    strength: float
    """How much of its own model counts where nobody asks for another: its guard's choice."""
    loss: float
    folder: Path


def personalize(
    run: Run | str | Path | None,
    client: str,
    *,
    data: str | Path | Dataset | None = None,
    epochs: int = DEFAULT_EPOCHS,
    lr: float | None = None,
    train_shared: bool = False,
    session: Session | None = None,
    progress: Progress | None = None,
) -> PersonalizeResult:
    """Fine-tune one client's own model, store it in the run, and compare it with what was before.

    Args:
        run: a finished run or its folder; None takes the newest in `runs`.
        client: a client of the run, or, with `data`, the id of a new one.
        data: folder of images per class, or a `Dataset`; None takes the client's own in the run.
        epochs: passes over the client's images.
        lr: learning rate; None takes the run's.
        train_shared: fine-tune the client's copy of the shared part as well.
        session: the run's, where it is open already.
        progress: draws progress and is told of warnings; None is silent.

    Returns:
        Accuracies in percent, zero-shot, before and after, and where the client is stored.

    Raises:
        PfedmmaError: as `fine_tune` does.

    Example:
        >>> from pfedmma_deploy import personalize
        >>> result = personalize("runs/photos", "1", epochs=1)
        >>> result.is_new, result.folder.as_posix()
        (False, 'runs/photos/clients/1')
    """
    run, progress = find_run(run), progress or Silent()
    tuned = fine_tune(
        run,
        client,
        data=data,
        epochs=epochs,
        lr=lr,
        train_shared=train_shared,
        session=session,
        progress=progress,
    )
    space = tuned.session
    scorer = open_scorer(space)
    adapter = space.build_adapter()
    models = (None, tuned.before, tuned.after)
    found = []
    for model in progress.track(models, "models evaluated", len(models)):
        dialled = None
        if model is not None:
            tensors, state, strength = model
            space.method.load_client(adapter, tensors, state)
            dialled = adapter.at(strength)
        found.extend(scorer.score(dialled, [tuned.client]))
    zero_shot, before, after = found
    folder = run.folder / "clients" / client
    strength = tuned.after[-1]
    return PersonalizeResult(
        client, tuned.is_new, zero_shot, before, after, strength, tuned.loss, folder
    )


def fine_tune(
    run: Run,
    client: str,
    *,
    data: str | Path | Dataset | None = None,
    epochs: int = DEFAULT_EPOCHS,
    lr: float | None = None,
    train_shared: bool = False,
    session: Session | None = None,
    progress: Progress | None = None,
) -> FineTuned:
    """Fine-tune one client's own model and store it in the run.

    Repeating it starts from the federation's adapter again: nothing compounds.

    Args:
        run: a finished run.
        client: a client of the run, or, with `data`, the id of a new one.
        data: a folder of images per class (or with train/val/test inside), or a `Dataset`; for a
            known client it takes the place of the images it was trained on.
        epochs: passes over the client's images.
        lr: learning rate; None takes the run's.
        train_shared: fine-tune the client's copy of the shared part as well and store it with it.
        session: the run's, where it is open already.
        progress: told of warnings about the images.

    Raises:
        UsageError: an unknown client without data, or options out of range.
        TrainingError: the loss or a weight is no longer a finite number; nothing is stored.
        PfedmmaError: anything in the run or the images that does not fit.
    """
    is_new = _require_options(run, client, data, epochs, lr)
    session = session or open_run_session(run)
    if data is not None:
        session = with_client_data(session, client, data)
        for warning in session.federation.warnings:
            (progress or Silent()).note(f"warning: {warning}")
    chosen = next(c for c in session.federation.clients if c.id == client)
    shared, method = run.load_shared(), session.method
    adapter, state, strength = _start(run, session, client, shared, is_new=is_new)
    before = adapter.tensors(), state, strength
    _require_trainable(adapter, method.name, train_shared)
    scopes = {Scope.LOCAL, Scope.SHARED} if train_shared else {Scope.LOCAL}
    changes = {"epochs": epochs, "scopes": frozenset(scopes)} | ({"lr": lr} if lr else {})
    session.images.keep(
        chosen.train,
        adapter.first_block(session.backbone, "image"),
        is_random=session.config.transform == "random",
    )
    work = ClientRun(
        backbone=session.backbone,
        adapter=adapter,
        loss=method.loss,
        client=chosen,
        images=session.images,
        prompts=session.class_prompts(adapter, session.federation.base),
        options=session.local_training(**changes),
        received=session.sent_to(client, shared),
        optimizer={},
        state=state,
        # Ids are text, so the client's part of the seed is their checksum.
        rng=np.random.default_rng([run.config.seed, zlib.crc32(client.encode()) + 1, 1]),
    )
    started = time.perf_counter()
    loss = method.personalize(work)
    work.require_finite(loss)
    seconds = time.perf_counter() - started
    provenance = {
        "epochs": epochs,
        "lr": lr or run.config.lr,
        "trained_shared": train_shared,
        "data": data.name if isinstance(data, Dataset) else data and Path(data).name,
    }
    config = client_config(
        session,
        chosen,
        state_to_dict(work.state),
        rounds=0 if is_new else run.config.rounds,
        personalized=provenance,
    )
    own = adapter.tensors() if train_shared else adapter.tensors(*KEPT)
    stored = settled(session, chosen, StoredClient(client, own, config), shared)
    run.save_client(stored, keep_federated=not is_new)
    run.save()
    after = adapter.tensors(), work.state, stored.default_strength
    return FineTuned(chosen, is_new, session, before, after, loss, seconds)


def _start(
    run: Run, session: Session, client: str, shared: Tensors, *, is_new: bool
) -> tuple[Adapter, Any, float]:
    """The model and the method's state that fine-tuning starts from, and its strength."""
    if is_new:
        return session.new_client_model(client, shared), session.method.initial_state(), 1.0
    stored = run.load_client(client, federated=True)
    _, state = session.method.read_state(stored.tensors, stored.config.get("state"))
    return session.client_model(stored, shared), state, stored.default_strength


def _require_options(
    run: Run, client: str, data: str | Path | Dataset | None, epochs: int, lr: float | None
) -> bool:
    """Whether the client is new to the run; raises where it cannot be personalized."""
    run.require_complete()
    if run.role == "server" and data is None:
        raise UsageError(
            f"{run.folder} is the server's end of a federation across machines, and the images of "
            f"{client!r} are at its site: personalize there, or pass --data."
        )
    if epochs < 1 or (lr is not None and lr <= 0):
        raise UsageError("--epochs must be 1 or more and --lr above 0.")
    is_new = client not in run.client_ids
    if is_new and data is None:
        hint = nearest(client, run.client_ids) or "."
        raise UsageError(
            f"The run {run.folder} has no client {client!r}{hint} "
            "For a new client pass --data with a folder of its images, one sub-folder per class."
        )
    return is_new


def with_client_data(session: Session, client: str, data: str | Path | Dataset) -> Session:
    """The session with `client` holding the images of `data`, next to the run's test images.

    All classes of `data` count as seen by the client; new names join the run's base names, and a
    novel class of the run that the client holds is no longer novel to it.
    """
    run_data = session.federation
    own = load_dataset(data)
    held, warnings = build_client(own, client_id=client, seed=session.config.seed)
    joined = ConcatDataset(run_data.dataset, own)
    classes = tuple(sorted(joined.label[label] for label in held.classes))
    splits: dict[str, Any] = {
        split: tuple(joined.added[example.key] for example in getattr(held, split))
        for split in ("train", "val", "test")
    }
    member = replace(held, classes=classes, **splits)
    base = (*run_data.base, *(c for c in member.classes if c not in run_data.base))
    novel = tuple(label for label in run_data.novel if label not in member.classes)
    others = tuple(c for c in run_data.clients if c.id != client)
    federation = Federation(
        dataset=joined,
        base=base,
        novel=novel,
        clients=(*others, member),
        base_test=run_data.base_test,
        novel_test=tuple(e for e in run_data.novel_test if e.label in novel),
        warnings=warnings,
    )
    return session.on(federation)


def _require_trainable(adapter: Adapter, method: str, train_shared: bool) -> None:
    if adapter.tensors(Scope.LOCAL) or (train_shared and adapter.tensors(Scope.SHARED)):
        return
    advice = " with --train-shared, which gives it a copy of its own" if not train_shared else ""
    if not adapter.tensors(Scope.SHARED):
        raise UsageError(f"{method} has nothing to train: its clients are zero-shot CLIP.")
    raise UsageError(f"{method} keeps nothing of its own on a client: personalize{advice}.")
