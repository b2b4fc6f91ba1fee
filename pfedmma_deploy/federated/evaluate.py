"""`pfedmma evaluate`: every client of a run, zero-shot beside personalized."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.evaluation.accuracy import Accuracy, Scorer, mean_accuracy, unique
from pfedmma_deploy.federated.session import Session, open_run_session
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.store.run import Run
from pfedmma_deploy.types import STRENGTHS, Example


@dataclass(frozen=True)
class RunEvaluation:
    """Accuracies by client id, and their unweighted means."""

    zero_shot: dict[str, Accuracy]
    personalized: dict[str, Accuracy]
    strengths: Mapping[str, float]
    """At which the clients' own models were scored."""

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
            clients[client] = {
                "zero_shot": zero_shot.to_dict(),
                "personalized": own.to_dict(),
                "strength": self.strengths[client],
            }
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
    strength: float | None = None,
    session: Session | None = None,
    progress: Progress | None = None,
) -> RunEvaluation:
    """Score the federation's clients with their current adapters on the run's test images.

    At `strength`, 1 being as trained; None takes each client's default, as it answers when served.
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
    personalized, strengths = {}, {}
    for client in (progress or Silent()).track(chosen, "clients evaluated", len(chosen)):
        stored = run.load_client(client.id)
        model = session.client_model(stored, shared, adapter)
        strengths[client.id] = stored.default_strength if strength is None else strength
        (personalized[client.id],) = scorer.score(model.at(strengths[client.id]), [client])
    ids = [client.id for client in chosen]
    return RunEvaluation(dict(zip(ids, zero_shot, strict=True)), personalized, strengths)


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

    Strength 0 is zero-shot, and a client's default is what was `measured`; the others are scored
    here.
    """
    adapter, shared = session.build_adapter(), run.load_shared()
    scorer, curves = open_scorer(session), {}
    chosen = [one for one in session.federation.clients if one.id in measured.personalized]
    for client in (progress or Silent()).track(chosen, "clients at other strengths", len(chosen)):
        session.client_model(run.load_client(client.id), shared, adapter)
        own = measured.strengths[client.id]
        known = {own: measured.personalized[client.id], 0.0: measured.zero_shot[client.id]}
        for strength in {*strengths, 1.0}:
            if strength not in known:
                (known[strength],) = scorer.score(adapter.at(strength), [client])
        curves[client.id] = dict(sorted(known.items()))
    return curves


def validate_run(run: Run, session: Session) -> float:
    """Mean over clients of the accuracy on their own validation images, among all base names.

    Clients without validation images do not count.

    Raises:
        UsageError: no client has validation images.
    """
    own = {client.id: client.val for client in session.federation.clients}
    found = _mean_accuracy_on(run, session, own)
    if found is None:
        raise UsageError(
            f"No client of {run.folder} has validation images to choose on: give the data a val "
            "folder, or leave tuning out."
        )
    return found


def validate_run_on_others(run: Run, session: Session) -> float | None:
    """Mean over clients of the accuracy on the classes that others train on, among all base names.

    A client's model is asked about the validation images of all clients together whose base class
    it does not train on itself: what forgetting costs, as far as it can be seen before testing.
    Clients that train on every base class do not count; None where all of them do.
    """
    pooled = unique(image for client in session.federation.clients for image in client.val)
    others = {}
    for client in session.federation.clients:
        others[client.id] = [image for image in pooled if image.label not in client.classes]
    return _mean_accuracy_on(run, session, others)


def _mean_accuracy_on(
    run: Run, session: Session, images: Mapping[str, Sequence[Example]]
) -> float | None:
    """Unweighted mean over clients of each one's model on its images of base classes, by id.

    Clients without images do not count; None where none has any.
    """
    scorer, adapter, shared = open_scorer(session), session.build_adapter(), run.load_shared()
    found = []
    for client, chosen in images.items():
        if chosen:
            model = session.served_model(run.load_client(client), shared, adapter)
            found.append(scorer.accuracy_on(model, chosen))
    return fmean(found) if found else None


def open_scorer(session: Session) -> Scorer:
    """A scorer for the models of a session."""
    return session.scorer()
