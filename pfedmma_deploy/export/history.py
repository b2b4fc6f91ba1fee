"""What a bundle remembers of the run that it was made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

from pfedmma_deploy.evaluation.accuracy import Accuracy
from pfedmma_deploy.evaluation.run import RunEvaluation, evaluate_run
from pfedmma_deploy.progress import Progress
from pfedmma_deploy.runtime.manifest import ClientHistory, Figures, History
from pfedmma_deploy.store.run import Run
from pfedmma_deploy.store.workspace import Workspace
from pfedmma_deploy.types import ClientData, Federation

__all__ = ["MOST_IMAGES", "measure", "run_history", "without_client"]

MOST_IMAGES = 30_000
"""Images through a tower beyond which an export does not measure accuracies by itself."""


def measure(
    run: Run, workspace: Workspace, clients: Collection[str], progress: Progress
) -> RunEvaluation | None:
    """Accuracies of these clients; None, which is said, where there are too many test images."""
    federation = workspace.federation
    tests = len(federation.base_test) + len(federation.novel_test)
    count = tests * (1 + sum(client.id in clients for client in federation.clients))
    if count > MOST_IMAGES:
        progress.note(
            f"The bundle will not say how accurate its clients are: that takes {count:,} images "
            f"through the model, more than {MOST_IMAGES:,}; `pfedmma evaluate` measures it."
        )
        return None
    return evaluate_run(run, clients=clients, workspace=workspace, progress=progress)


def run_history(
    run: Run,
    federation: Federation,
    clients: Sequence[str],
    class_count: int,
    measured: RunEvaluation | None,
) -> History:
    """Rounds, traffic, and for each of `clients` its images per class and its accuracies.

    Args:
        run: a finished run.
        federation: the run's.
        clients: ids of the bundle's clients.
        class_count: of the bundle; its first classes are the run's.
        measured: accuracies of the run's clients; None leaves them out.
    """
    rounds = run.rounds
    traffic = run.manifest["bytes_per_round"]
    held = {client.id: client for client in federation.clients}
    return History(
        rounds=len(rounds),
        bytes_up_per_client_round=traffic["up"],
        bytes_down_per_client_round=traffic["down"],
        bytes_total=round(
            sum(
                len(entry["clients"])
                * (entry["bytes_up_per_client"] + entry["bytes_down_per_client"])
                for entry in rounds
            )
        ),
        parameters=dict(run.manifest["parameters"]),
        clients={
            client: ClientHistory(
                _counts(held.get(client), class_count),
                _figures(measured.zero_shot.get(client) if measured else None),
                _figures(measured.personalized.get(client) if measured else None),
            )
            for client in clients
        },
    )


def without_client(history: History | None, client: str) -> History | None:
    """The history once `client` has left the bundle; what was sent stays sent."""
    if history is None:
        return None
    kept = {name: entry for name, entry in history.clients.items() if name != client}
    return replace(history, clients=kept)


def _counts(client: ClientData | None, class_count: int) -> tuple[int, ...]:
    """Training images by the bundle's labels; empty for a client that joined with its own data."""
    if client is None:
        return ()
    found = Counter(example.label for example in client.train)
    return tuple(found[label] for label in range(class_count))


def _figures(accuracy: Accuracy | None) -> Figures | None:
    if accuracy is None:
        return None
    return Figures(accuracy.local, accuracy.base, accuracy.novel)
