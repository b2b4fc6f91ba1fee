"""The federated algorithm: sample, train, average, commit. Written once, for every engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pfedmma_deploy.config import TrainConfig
from pfedmma_deploy.federated.engine import ClientReport, Engine, payload
from pfedmma_deploy.federated.privacy import Privacy
from pfedmma_deploy.methods.base import Method, Tensors
from pfedmma_deploy.progress import Progress
from pfedmma_deploy.store.checkpoint import Checkpoint
from pfedmma_deploy.store.run import Run


def ignore(record: dict[str, Any]) -> None:
    """Nothing: the default of callbacks."""


@dataclass(frozen=True)
class Callbacks:
    """What a program wants to hear of a training; an error that one raises stops it."""

    on_round: Callable[[dict[str, Any]], None] = ignore
    """After each round, once it is stored: its line of `rounds.jsonl` (`round_record`)."""
    on_client: Callable[[dict[str, Any]], None] = ignore
    """After each client's part of a round: `round` (from 1), `client`, `loss` and `val_accuracy` in
    percent, None where the client has no validation images."""


NO_CALLBACKS = Callbacks()


def sample_clients(clients: list[str], fraction: float, seed: int, round: int) -> list[str]:
    """The clients that train in a round: max(1, round(fraction * N)) of them, in client order."""
    rng = np.random.default_rng([seed, round])
    count = clients_in_round(fraction, len(clients))
    chosen = np.sort(rng.choice(len(clients), size=count, replace=False))
    return [clients[i] for i in chosen]


def clients_in_round(fraction: float, clients: int) -> int:
    """How many of so many clients a round selects."""
    return max(1, round_half_up(fraction * clients))


def answering(clients: list[str], client_dropout: float, seed: int, round: int) -> list[str]:
    """Those of the selected clients that answer; each fails with probability `client_dropout`.

    One that fails keeps the state that it had. At least one answers: a round without any would be
    no round.
    """
    if client_dropout == 0:
        return clients
    # A third number, so that these draws are not those of the selection.
    rng = np.random.default_rng([seed, round, 0, 1])
    lost = rng.random(len(clients)) < client_dropout
    if lost.all():
        lost[rng.integers(len(clients))] = False
    return [client for client, gone in zip(clients, lost, strict=True) if not gone]


def round_half_up(value: float) -> int:
    """Nearest whole number, halves up: 2.5 clients are 3, whatever Python's round makes of it."""
    return int(value + 0.5)


def privacy_of(config: TrainConfig, clients: int) -> Privacy | None:
    """The differential privacy that the options ask for, in a federation of so many clients."""
    if config.dp_clip is None or config.dp_noise is None:
        return None
    expected = clients_in_round(config.clients_per_round, clients)
    return Privacy(config.dp_clip, config.dp_noise, clients, expected)


def noise_generator(seed: int, round: int) -> np.random.Generator:
    """Draws the noise of a round, which is to be the same again after a resume."""
    # 2: neither the selection's draws, nor those of `answering`, nor a client's.
    return np.random.default_rng([seed, round, 0, 2])


def run_rounds(
    run: Run,
    engine: Engine,
    method: Method[Any, Any],
    clients: Callable[[], list[str]],
    shared: Tensors,
    checkpoint: Checkpoint,
    progress: Progress,
    quorum: int = 1,
    noise_seed: int | None = None,
    callbacks: Callbacks = NO_CALLBACKS,
) -> Tensors:
    """Run what is left of the rounds and return the server's state after the last.

    `clients` says before each round who may be chosen, in order.
    `shared` is the common initial state; a checkpoint that is further along takes its place.
    Each round ends in a commit, so a stop at any moment loses at most the round in flight. A round
    with fewer than `quorum` reports changes nothing, and its line says so. Noise for differential
    privacy comes from `noise_seed`, or else from the run's seed, which clients may know.
    """
    config, aggregator = run.config, method.aggregator(run.config.aggregate)
    privacy = privacy_of(config, len(clients()))
    noise_seed = config.seed if noise_seed is None else noise_seed
    # A method may share nothing: then both are empty, and it does not matter which is taken.
    shared = checkpoint.load_shared() or shared
    first = checkpoint.round + 1
    checkpoint.remove_leftovers()
    run.write_rounds(first, checkpoint.record)
    for round in progress.track(range(first, config.rounds), "rounds", config.rounds - first):
        started = time.perf_counter()
        chosen = sample_clients(clients(), config.clients_per_round, config.seed, round)
        chosen = answering(chosen, config.client_dropout, config.seed, round)
        received = engine.run_round(round, chosen, shared)
        reports = []
        for report in progress.track(received, f"clients of round {round + 1}", len(chosen)):
            reports.append(report)
            callbacks.on_client(_client_record(round, report))
        is_counted = len(reports) >= quorum
        counted = reports if is_counted else []
        updates = [report.update for report in counted]
        if is_counted and privacy is None:
            shared = aggregator.combine(updates, shared)
        elif is_counted and privacy is not None:
            shared = privacy.combine(updates, shared, noise_generator(noise_seed, round))
        record = round_record(round, counted, time.perf_counter() - started)
        if not is_counted:
            record["not_counted"] = f"{len(reports)} answers, the quorum is {quorum}"
        if privacy is not None:
            record["epsilon"] = privacy.epsilon(round + 1)
        record.update(engine.cost.take())
        # Before its line: `write_rounds` can mend a missing line, but not a missing state.
        checkpoint.commit(round, shared, record)
        run.append_round(record)
        callbacks.on_round(record)
    return shared


def _client_record(round: int, report: ClientReport) -> dict[str, Any]:
    return {
        "round": round + 1,
        "client": report.update.client,
        "loss": report.loss,
        "val_accuracy": report.val_accuracy,
    }


def round_record(round: int, reports: list[ClientReport], seconds: float) -> dict[str, Any]:
    """One line of `rounds.jsonl`; means over clients are unweighted, bytes are per client.

    `client_loss` and `client_val_accuracy` are in the order of `clients`. Without reports the means
    are None and the bytes 0.
    """
    accuracies = [r.val_accuracy for r in reports if r.val_accuracy is not None]
    remarks = {report.update.client: report.remarks for report in reports if report.remarks}
    return {
        "round": round + 1,
        "clients": [report.update.client for report in reports],
        "loss": float(np.mean([report.loss for report in reports])) if reports else None,
        "val_accuracy": float(np.mean(accuracies)) if accuracies else None,
        "client_loss": [report.loss for report in reports],
        "client_val_accuracy": [report.val_accuracy for report in reports],
        "bytes_up_per_client": _mean([payload(report.update.shared) for report in reports]),
        "bytes_down_per_client": _mean([report.bytes_down for report in reports]),
        "seconds": float(f"{seconds:.3f}"),
        **({"remarks": remarks} if remarks else {}),
    }


def _mean(sizes: list[int]) -> int:
    return round_half_up(sum(sizes) / len(sizes)) if sizes else 0
