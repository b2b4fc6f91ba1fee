"""`pfedmma train`: from a configuration to a run folder."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfedmma_deploy.adapters.base import KEPT, Adapter
from pfedmma_deploy.backbone.products import Linear
from pfedmma_deploy.backbone.texts import class_texts, with_prefix
from pfedmma_deploy.config import TrainConfig
from pfedmma_deploy.data.clients_file import federation_to_dict
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.federated.engine import InProcessEngine
from pfedmma_deploy.federated.rounds import run_rounds
from pfedmma_deploy.federated.traffic import traffic
from pfedmma_deploy.methods.client_run import LocalTraining, Prompts
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.store.checkpoint import Checkpoint
from pfedmma_deploy.store.clients import StoredClient
from pfedmma_deploy.store.run import Run
from pfedmma_deploy.store.workspace import Workspace, open_run_workspace, open_workspace, path_from
from pfedmma_deploy.types import ClientData, Scope

RECORDED_LIBRARIES = ("pfedmma-deploy", "torch", "open_clip_torch", "numpy", "pillow")


@dataclass(frozen=True)
class TrainResult:
    """A finished run and what it took."""

    run: Run
    seconds: float
    bytes_up_per_client_round: int
    bytes_down_per_client_round: int


def train(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    linear: Linear | None = None,
) -> TrainResult:
    """Train a federation and write its run folder; a stop at any moment can be resumed.

    Args:
        config: the resolved options.
        out: the run folder; must be absent or empty unless `resume`.
        resume: continue the run in `out`, to the same bytes as if it had never stopped. Its stored
            configuration must be `config`.
        progress: told of rounds and clients.
        linear: as `open_workspace`, for benchmarks.

    Raises:
        PfedmmaError: anything that is missing or does not fit.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    run = Run.open(out) if resume else None
    if run is None:
        workspace = open_workspace(config, progress, linear=linear)
        run = Run.create(out, _manifest(workspace, out), federation_to_dict(workspace.federation))
    else:
        require_same_config(run, config)
        workspace = open_run_workspace(run)
    for warning in workspace.federation.warnings:
        progress.note(f"warning: {warning}")
    adapter = workspace.build_adapter()
    initial = adapter.tensors(*KEPT)
    if run.is_complete:
        progress.note(f"{run.folder} is complete: nothing left to do.")
    else:
        shared = _federate(run, workspace, adapter, progress)
        _finish(run, workspace, shared, initial)
    sizes = run.manifest["bytes_per_round"]
    return TrainResult(run, time.perf_counter() - started, sizes["up"], sizes["down"])


def require_same_config(run: Run, config: TrainConfig) -> None:
    """Raises `UsageError` naming the first option in which `config` differs from the run's."""
    stored = run.config.to_options()
    for name, value in config.to_options().items():
        if stored[name] != value:
            raise UsageError(
                f"{run.folder} was started with {name} = {stored[name]!r}, not {value!r}. A "
                "resumed run keeps its options: leave this one out, or start another with --out."
            )


def class_prompts(workspace: Workspace, adapter: Adapter, labels: tuple[int, ...]) -> Prompts:
    """Names of the given classes, tokenized, with what the frozen blocks make of them."""
    names = workspace.federation.names(labels)
    texts = class_texts(workspace.backbone, names, workspace.config.prompt)
    if workspace.images.prefixes is not None:
        start = adapter.first_block(workspace.backbone, "text")
        texts = with_prefix(workspace.backbone, texts, start)
    return Prompts(texts=texts, row={label: i for i, label in enumerate(labels)})


def local_training(workspace: Workspace, **changes: Any) -> LocalTraining:
    """The configuration's local training, with `changes` to it."""
    config = workspace.config
    options: dict[str, Any] = {
        "epochs": config.local_epochs,
        "batch_size": config.batch_size,
        "optimizer": config.optimizer,
        "lr": config.lr,
        "momentum": config.momentum,
        "weight_decay": config.weight_decay,
        "random_transform": config.transform == "random",
        "logit_scale": workspace.logit_scale,
    }
    return LocalTraining(**{**options, **changes})


def client_config(workspace: Workspace, client: ClientData, **provenance: Any) -> dict[str, Any]:
    """`adapter_config.json`: what someone needs to use or refuse this client's adapter."""
    federation = workspace.federation
    parameters = workspace.method.configure(workspace.config.parameters)
    return {
        "format": "pfedmma-client",
        "format_version": 1,
        "client": client.id,
        "method": workspace.method.name,
        "parameters": asdict(parameters),
        "backbone": backbone_entry(workspace),
        "prompt": workspace.config.prompt,
        "logit_scale": workspace.logit_scale,
        "seen": federation.names(client.classes),
        "base": federation.names(federation.base),
        "novel": federation.names(federation.novel),
        "domain": client.domain,
        "num_examples": len(client.train),
        **provenance,
    }


def backbone_entry(workspace: Workspace) -> dict[str, str]:
    """How files name the backbone they belong to."""
    backbone = workspace.backbone
    return {
        "name": backbone.name,
        "pretrained": backbone.pretrained,
        "fingerprint": backbone.fingerprint,
    }


def _federate(
    run: Run, workspace: Workspace, adapter: Adapter, progress: Progress
) -> dict[str, Tensor]:
    """The rounds that are left; returns the server's state after the last."""
    checkpoint = run.checkpoint
    federation = workspace.federation
    engine = InProcessEngine(
        backbone=workspace.backbone,
        method=workspace.method,
        adapter=adapter,
        clients=federation.clients,
        images=workspace.images,
        prompts=class_prompts(workspace, adapter, federation.base),
        options=local_training(workspace),
        checkpoint=checkpoint,
        seed=run.config.seed,
        together=run.config.client_batching,
    )
    ids = [client.id for client in federation.clients]
    server = workspace.method.start(adapter, ids)
    return run_rounds(run, engine, workspace.method, ids, server, checkpoint, progress)


def _finish(
    run: Run, workspace: Workspace, shared: dict[str, Tensor], initial: dict[str, Tensor]
) -> None:
    """Write the results; `complete` is said last. A client that never trained keeps `initial`."""
    checkpoint: Checkpoint = run.checkpoint
    run.save_shared(shared)
    run.save_clients(_results(workspace, checkpoint, shared, initial))
    run.record_rounds()
    run.manifest["status"] = "complete"
    run.save()


def _results(
    workspace: Workspace,
    checkpoint: Checkpoint,
    shared: dict[str, Tensor],
    initial: dict[str, Tensor],
) -> Iterator[StoredClient]:
    for client in workspace.federation.clients:
        state = checkpoint.load_client(client.id)
        tensors = initial if state is None else state.own
        # What the server supplies of the frozen ones is newer than the client's copy.
        sent = workspace.method.distribute(shared, client.id)
        tensors = {name: sent.get(name, value) for name, value in tensors.items()}
        rounds = workspace.config.rounds
        config = client_config(workspace, client, rounds=rounds, personalized=None)
        yield StoredClient(client.id, tensors, config)


def _manifest(workspace: Workspace, out: Path) -> dict[str, Any]:
    federation = workspace.federation
    adapter = workspace.build_adapter()
    counts = {
        scope.value: sum(value.numel() for value in adapter.tensors(scope).values())
        for scope in (Scope.SHARED, Scope.LOCAL)
    }
    frozen = sum(value.numel() for value in workspace.backbone.model.parameters())
    return {
        "status": "training",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": workspace.config.to_dict(),
        "data_path": path_from(out, workspace.config.data),
        "method": workspace.method.name,
        "backbone": backbone_entry(workspace),
        "logit_scale": workspace.logit_scale,
        "class_names": list(federation.dataset.class_names),
        "base": federation.names(federation.base),
        "novel": federation.names(federation.novel),
        "clients": [],
        "parameters": {**counts, "frozen": frozen},
        "bytes_per_round": traffic(workspace.method, adapter, federation.clients),
        "skipped": [[s.path, s.reason] for s in federation.dataset.skipped],
        "warnings": list(federation.warnings),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in RECORDED_LIBRARIES},
        },
    }
