"""`pfedmma evaluate`: every client of a run, zero-shot beside personalized."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.evaluation.accuracy import Accuracy, Scorer, mean_accuracy
from pfedmma_deploy.federated.session import Session, open_run_session
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.store.run import Run
from pfedmma_deploy.types import STRENGTHS


@dataclass(frozen=True)
class RunEvaluation:
    """Accuracies by client id, and their unweighted means."""

    zero_shot: dict[str, Accuracy]
    personalized: dict[str, Accuracy]

    @property
    def zero_shot_mean(self) -> Accuracy:
        """Mean over clients of the plain backbone."""
        return mean_accuracy(self.zero_shot.values())

    @property
    def personalized_mean(self) -> Accuracy:
        """Mean over clients of their own models."""
        return mean_accuracy(self.personalized.values())

    @property
    def worst(self) -> dict[str, dict[str, str | float] | None]:
        """The lowest of each of `Accuracy`'s figures over clients' own models, and whose it is.

        `{"client": id, "accuracy": percent}` by figure, the first client of equals; None where no
        client has the figure.
        """
        found: dict[str, dict[str, str | float] | None] = {}
        for client, own in self.personalized.items():
            for key, value in own.to_dict().items():
                lowest = found.setdefault(key, None)
                if value is not None and (lowest is None or value < float(lowest["accuracy"])):
                    found[key] = {"client": client, "accuracy": value}
        return found

    @property
    def losing_clients(self) -> list[str]:
        """Clients whose own model loses more than a point of base or novel against zero-shot."""
        pairs = self.personalized.items()
        return [client for client, own in pairs if own.loses(self.zero_shot[client])]

    @property
    def losing_share(self) -> float:
        """Their share of all clients that were scored, in percent."""
        return 100 * len(self.losing_clients) / len(self.personalized)

    def to_dict(self) -> dict[str, Any]:
        """Means and each client's figures under the names that `--json` uses."""
        clients = {}
        for client, own in self.personalized.items():
            zero_shot = self.zero_shot[client]
            clients[client] = {"zero_shot": zero_shot.to_dict(), "personalized": own.to_dict()}
        return {
            "zero_shot": self.zero_shot_mean.to_dict(),
            "personalized": self.personalized_mean.to_dict(),
            "worst": self.worst,
            "losing_share": self.losing_share,
            "losing_clients": self.losing_clients,
            "clients": clients,
        }


def evaluate_run(
    run: Run,
    *,
    clients: Collection[str] | None = None,
    session: Session | None = None,
    progress: Progress | None = None,
) -> RunEvaluation:
    """Score the federation's clients with their current adapters on the run's test images.

    Clients that joined later with images of their own have no test images in the run; they are
    scored when they are personalized. With `clients`, only those of them are scored.
    """
    run.require_complete()
    if run.role == "server":
        raise UsageError(
            f"{run.folder} is the server's end of a federation across machines, and the test "
            "images are at the sites: evaluate there."
        )
    session = session or open_run_session(run)
    federation = session.federation
    scorer = open_scorer(session)
    adapter, shared = session.build_adapter(), run.load_shared()
    chosen = [c for c in federation.clients if clients is None or c.id in clients]
    zero_shot = scorer.score(None, chosen)
    personalized = {}
    for client in (progress or Silent()).track(chosen, "clients evaluated", len(chosen)):
        session.client_model(run.load_client(client.id), shared, adapter)
        (personalized[client.id],) = scorer.score(adapter, [client])
    ids = [client.id for client in chosen]
    return RunEvaluation(dict(zip(ids, zero_shot, strict=True)), personalized)


Curve = dict[float, Accuracy]
"""Accuracy by strength, ascending."""


def strength_curves(
    run: Run,
    measured: RunEvaluation,
    session: Session,
    strengths: Sequence[float] = STRENGTHS,
    progress: Progress | None = None,
) -> dict[str, Curve]:
    """Every measured client's accuracy at 0, 1 and other `strengths`, on the run's test images.

    Strength 0 is zero-shot and strength 1 the client as it was `measured`; the others are scored
    here. Empty where the method's adapters have no strength but 1.
    """
    adapter, shared = session.build_adapter(), run.load_shared()
    if adapter.interpolation is None:
        return {}
    scorer, curves = open_scorer(session), {}
    chosen = [one for one in session.federation.clients if one.id in measured.personalized]
    for client in (progress or Silent()).track(chosen, "clients at other strengths", len(chosen)):
        session.client_model(run.load_client(client.id), shared, adapter)
        known = {0.0: measured.zero_shot[client.id], 1.0: measured.personalized[client.id]}
        for strength in strengths:
            if strength not in known:
                (known[strength],) = scorer.score(adapter.at(strength), [client])
        curves[client.id] = dict(sorted(known.items()))
    return curves


def validate_run(run: Run, session: Session) -> float:
    """Mean over clients of the accuracy on their own validation images, among all base names.

    Raises:
        UsageError: no client has validation images.
    """
    scorer, adapter, shared = open_scorer(session), session.build_adapter(), run.load_shared()
    found = []
    for client in session.federation.clients:
        if client.val:
            session.client_model(run.load_client(client.id), shared, adapter)
            found.append(scorer.accuracy_on(adapter, client.val))
    if not found:
        raise UsageError(
            f"No client of {run.folder} has validation images to choose on: give the data a val "
            "folder, or leave tuning out."
        )
    return sum(found) / len(found)


def open_scorer(session: Session) -> Scorer:
    """A scorer for the models of a session."""
    return session.scorer()
