"""`pfedmma train`: from a configuration to a run folder."""

from __future__ import annotations

import platform
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pfedmma_deploy.adapters.base import KEPT, Adapter
from pfedmma_deploy.backbone.linear import Linear
from pfedmma_deploy.config import TrainConfig
from pfedmma_deploy.data.clients_file import federation_to_dict
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.federated.engine import InProcessEngine, traffic
from pfedmma_deploy.federated.rounds import (
    NO_CALLBACKS,
    Callbacks,
    clients_in_round,
    privacy_of,
    run_rounds,
)
from pfedmma_deploy.federated.session import Session, open_run_session, open_session, path_from
from pfedmma_deploy.federated.settle import settled
from pfedmma_deploy.methods.aggregation import KRUM_NEEDS
from pfedmma_deploy.methods.base import Tensors, state_to_dict
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.store.checkpoint import ClientState
from pfedmma_deploy.store.run import Run, StoredClient
from pfedmma_deploy.types import ClientData, Scope

RECORDED_LIBRARIES = ("pfedmma-deploy", "torch", "open_clip_torch", "numpy", "pillow")


@dataclass(frozen=True)
class TrainResult:
    """A finished run and what it took."""

    run: Run
    seconds: float
    bytes_up_per_client_round: int
    bytes_down_per_client_round: int
    privacy: dict[str, Any] | None
    """The manifest's `privacy`: what the whole run cost; None without differential privacy."""


def train(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    linear: Linear | None = None,
    callbacks: Callbacks = NO_CALLBACKS,
) -> TrainResult:
    """Train a federation and write its run folder; a stop at any moment can be resumed.

    Args:
        config: the resolved options.
        out: the run folder; must be absent or empty unless `resume`.
        resume: continue the run in `out`, bit-identical to one that never stopped. Its stored
            configuration must be `config`.
        progress: told of rounds and clients.
        linear: as for `open_session`, for benchmarks.
        callbacks: told of what each round and each client's part of it came to.

    Raises:
        PfedmmaError: anything that is missing or does not fit.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    run = Run.open(out) if resume else None
    if run is None:
        session = open_session(config, progress, linear=linear)
        manifest = run_manifest(session, out)
        manifest |= privacy_entry(session, len(session.federation.clients))
        run = Run.create(out, manifest, federation_to_dict(session.federation))
    else:
        require_same_config(run, config)
        if run.role != "alone":
            command = "fleet serve FOLDER" if run.role == "server" else "fleet join INVITATION"
            raise UsageError(
                f"{run.folder} is one end of a federation across machines: continue it with "
                f"`pfedmma {command}`."
            )
        session = open_run_session(run)
    for warning in session.federation.warnings:
        progress.note(f"warning: {warning}")
    adapter = session.build_adapter()
    initial = adapter.tensors(*KEPT)
    note_rule(config, len(session.federation.clients), progress)
    if run.is_complete:
        progress.note(f"{run.folder} is complete: nothing left to do.")
    else:
        shared = _federate(run, session, adapter, progress, callbacks)
        _finish(run, session, shared, initial)
    sizes = run.manifest["bytes_per_round"]
    seconds, privacy = time.perf_counter() - started, run.manifest.get("privacy")
    return TrainResult(run, seconds, sizes["up"], sizes["down"], privacy)


def require_same_config(run: Run, config: TrainConfig) -> None:
    """Raises `UsageError` naming the first option in which `config` differs from the run's."""
    stored = run.config.to_options()
    for name, value in config.to_options().items():
        if stored[name] != value:
            raise UsageError(
                f"{run.folder} was started with {name} = {stored[name]!r}, not {value!r}. A "
                "resumed run keeps its options: leave this one out, or start another with --out."
            )


def client_config(
    session: Session, client: ClientData, state: dict[str, Any] | None, **provenance: Any
) -> dict[str, Any]:
    """`adapter_config.json`: what someone needs to use or refuse this client's adapter."""
    federation = session.federation
    return {
        "format": "pfedmma-client",
        "format_version": 1,
        "client": client.id,
        "method": session.method.name,
        "parameters": asdict(session.method.parameters),
        "backbone": backbone_entry(session),
        "prompt": session.config.prompt,
        "logit_scale": session.logit_scale,
        "seen": federation.names(client.classes),
        "base": federation.names(federation.base),
        "novel": federation.names(federation.novel),
        "domain": client.domain,
        "num_examples": len(client.train),
        **({"state": state} if state else {}),
        **provenance,
    }


def backbone_entry(session: Session) -> dict[str, str]:
    """How files name the backbone they belong to."""
    backbone = session.backbone
    return {
        "name": backbone.name,
        "pretrained": backbone.pretrained,
        "fingerprint": backbone.fingerprint,
    }


def note_rule(config: TrainConfig, count: int, progress: Progress) -> None:
    """Say what the rule of aggregation costs, or does not do, with so many clients."""
    selected = clients_in_round(config.clients_per_round, count)
    if config.aggregate == "krum" and selected < KRUM_NEEDS:
        progress.note(
            f"warning: krum needs {KRUM_NEEDS} clients in a round to tell who is wrong; of"
            f" {selected} the plain mean is taken."
        )
    privacy = privacy_of(config, count)
    if privacy is not None:
        progress.note(
            f"Differential privacy: epsilon {privacy.epsilon(config.rounds):.2f} at delta"
            f" {privacy.delta:g} for the whole run (rounds: {config.rounds}, clients in a round:"
            f" {privacy.expected} of {count})."
        )


def _federate(
    run: Run, session: Session, adapter: Adapter, progress: Progress, callbacks: Callbacks
) -> Tensors:
    """The rounds that are left; returns the server's state after the last."""
    checkpoint = run.checkpoint
    federation = session.federation
    batching = run.config.client_batching
    engine = InProcessEngine.of(session, adapter, checkpoint, client_batching=batching)
    ids = [client.id for client in federation.clients]
    server = session.method.start(adapter, ids)
    return run_rounds(
        run,
        engine,
        session.method,
        lambda: ids,
        server,
        checkpoint,
        progress,
        callbacks=callbacks,
    )


def _finish(run: Run, session: Session, shared: Tensors, initial: Tensors) -> None:
    """Write the results; `complete` is said last. A client that never trained keeps `initial`."""
    checkpoint = run.checkpoint
    results = (
        client_result(session, client, checkpoint.load_client(client.id), shared, initial)
        for client in session.federation.clients
    )
    run.save_shared(shared)
    run.save_clients(results)
    run.record_rounds()
    run.manifest["status"] = "complete"
    run.save()


def client_result(
    session: Session,
    client: ClientData,
    last: ClientState | None,
    server: Tensors,
    initial: Tensors,
) -> StoredClient:
    """What a client has after the last round.

    Args:
        session: the run's.
        client: whose result.
        last: its state after its last round; None where it never trained.
        server: the server's state after the last round.
        initial: the tensors that every client starts with.
    """
    found = last or ClientState(initial)
    own, state = session.method.read_state(found.own, found.state)
    # What the server supplies of the frozen ones is newer than the client's copy.
    sent = session.sent_to(client.id, server)
    tensors = {name: sent.get(name, value) for name, value in own.items()}
    rounds = session.config.rounds
    config = client_config(session, client, state_to_dict(state), rounds=rounds, personalized=None)
    stored = StoredClient(client.id, tensors, config)
    # One that never trained has no model of its own yet; there may be thousands of them.
    return stored if last is None else settled(session, client, stored, server)


def privacy_entry(session: Session, clients: int) -> dict[str, Any]:
    """What the manifest says of differential privacy: nothing where none was asked for.

    Raises:
        UsageError: the method shares nothing that noise could be added to.
    """
    privacy = privacy_of(session.config, clients)
    if privacy is None:
        return {}
    if not session.build_adapter().tensors(Scope.SHARED):
        raise UsageError(
            f"{session.method.name} shares nothing, so there is nothing to add noise to: leave out"
            " --dp-clip and --dp-noise, or choose another --method."
        )
    return {"privacy": privacy.to_dict(session.config.rounds)}


def run_manifest(session: Session, out: Path) -> dict[str, Any]:
    """A new run's manifest: what it was started with."""
    federation = session.federation
    adapter = session.build_adapter()
    counts = {
        scope.value: sum(value.numel() for value in adapter.tensors(scope).values())
        for scope in (Scope.SHARED, Scope.LOCAL)
    }
    frozen = sum(value.numel() for value in session.backbone.model.parameters())
    return {
        "status": "training",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": session.config.to_dict(),
        "data_path": path_from(out, session.config.data),
        "method": session.method.name,
        "backbone": backbone_entry(session),
        "logit_scale": session.logit_scale,
        "class_names": list(federation.dataset.class_names),
        "base": federation.names(federation.base),
        "novel": federation.names(federation.novel),
        "clients": [],
        "parameters": {**counts, "frozen": frozen},
        "bytes_per_round": traffic(session.method, adapter, federation.clients),
        "skipped": [[s.path, s.reason] for s in federation.dataset.skipped],
        "warnings": list(federation.warnings),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in RECORDED_LIBRARIES},
        },
    }
