"""`pfedmma report`: everything that is claimed about runs, with its uncertainty.

A run is measured once on its test images; nothing is chosen on them. Every figure of the page
stands in `report_run`'s dictionary, accuracies in percent, sizes in bytes, times in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pfedmma_deploy.adapters.base import Adapter, Frozen
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.evaluation.accuracy import Accuracy, mean_accuracy
from pfedmma_deploy.federated.evaluate import RunEvaluation, open_scorer, strength_curves
from pfedmma_deploy.federated.session import Session, open_run_session
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.report.alignment import measure_alignment
from pfedmma_deploy.report.calibration import Calibration
from pfedmma_deploy.report.cost import total_cost
from pfedmma_deploy.report.measures import spread_out, wilson
from pfedmma_deploy.report.run_facts import (
    MOST_CLIENTS,
    describe_clients,
    describe_training,
    provenance,
)
from pfedmma_deploy.report.significance import spread
from pfedmma_deploy.store.run import Run

STRENGTHS = (0.0, 0.5, 1.0, 1.5)
"""Of the curve; 0 and 1 are measured anyway."""
INTERVALS = (
    "95 % intervals: of an accuracy by Wilson's score over test images; of a mean gain by "
    "Student's t over clients"
)


def report_runs(runs: Sequence[Run], progress: Progress | None = None) -> dict[str, Any]:
    """The report of at least one finished run: `runs`, each as `report_run` gives it.

    Raises:
        UsageError: no run, or one that is named twice.
        PfedmmaError: a run that is not finished, or whose backbone or images are not there.
    """
    if not runs:
        raise UsageError("name at least one run to report on")
    folders = [run.folder.resolve() for run in runs]
    for run in runs:
        if folders.count(run.folder.resolve()) > 1:
            raise UsageError(f"the run {run.folder} is named twice: name each run once")
        run.require_complete()
    return {"runs": [report_run(run, progress) for run in runs], "intervals": INTERVALS}


def report_run(run: Run, progress: Progress | None = None) -> dict[str, Any]:
    """Every figure of one finished run, JSON-ready.

    Returns:
        `name`, `folder`, `answer` (accuracies, intervals, gains), `strength`, `alignment`,
        `clients`, `cost`, `training`, `calibration` and `provenance`.
    """
    progress = progress or Silent()
    session = open_run_session(run)
    adapter, shared = session.build_adapter(), run.load_shared()

    def load(client: str) -> Adapter:
        return session.served_model(run.load_client(client), shared, adapter)

    found, calibration = _measure(session, load, progress)
    ids = [client.id for client in session.federation.clients]
    return {
        "name": run.folder.resolve().name,
        "folder": str(run.folder),
        "answer": _answer(found, session),
        "strength": _strength(run, found, session, progress),
        "alignment": measure_alignment(session, load, found, progress),
        "clients": describe_clients(session, load, spread_out(ids, MOST_CLIENTS), progress),
        "cost": _cost(run),
        "training": describe_training(run, ids),
        "calibration": calibration.to_dict(),
        "provenance": provenance(run, session),
    }


def _measure(
    session: Session, load: Callable[[str], Adapter], progress: Progress
) -> tuple[RunEvaluation, Calibration]:
    """Score every test image once by zero-shot and once by each client's own model."""
    scorer, clients = open_scorer(session), session.federation.clients
    every = scorer.tests(clients)
    plain = scorer.scores(Frozen(), every, *scorer.sets)
    row_of = {example.key: row for row, example in enumerate(every)}
    before = scorer.accuracies(clients, every, plain)
    zero_shot = {client.id: one for client, one in zip(clients, before, strict=True)}
    personalized: dict[str, Accuracy] = {}
    strengths: dict[str, float] = {}
    calibration = Calibration(scorer)
    for client in progress.track(clients, "clients measured", len(clients)):
        adapter, tests = load(client.id), scorer.tests([client])
        strengths[client.id] = adapter.strength
        scores = scorer.scores(adapter, tests, *scorer.sets)
        (personalized[client.id],) = scorer.accuracies([client], tests, scores)
        validation = None
        if client.val:
            (validation,) = scorer.scores(adapter, client.val, session.federation.base)
        rows = [row_of[example.key] for example in tests]
        calibration.add(client, tests, [found[rows] for found in plain], scores, validation)
    return RunEvaluation(zero_shot, personalized, strengths), calibration


def _answer(found: RunEvaluation, session: Session) -> dict[str, Any]:
    """`RunEvaluation.to_dict`, with intervals, numbers of test images, and gains over zero-shot."""
    federation, values = session.federation, found.to_dict()
    shared = {"base": len(federation.base_test), "novel": len(federation.novel_test)}
    gains: dict[str, list[float | None]] = {}
    for client in federation.clients:
        entry = values["clients"][client.id]
        images = {"local": len(client.test), **shared, "all": sum(shared.values())}
        entry["test_images"] = images
        entry["loses"] = client.id in values["losing_clients"]
        entry["intervals"] = {
            side: {key: _interval(entry[side][key], count) for key, count in images.items()}
            for side in ("zero_shot", "personalized")
        }
        for key, own in entry["personalized"].items():
            before = entry["zero_shot"][key]
            is_known = own is not None and before is not None
            gains.setdefault(key, []).append(own - before if is_known else None)
    values["gain"] = {key: spread([g for g in row if g is not None]) for key, row in gains.items()}
    return values


def _strength(
    run: Run, found: RunEvaluation, session: Session, progress: Progress
) -> dict[str, Any]:
    """Accuracies at several strengths, of each client and their mean, and what each answers at."""
    curves = strength_curves(run, found, session, STRENGTHS, progress)
    clients = {
        client: [{"strength": strength, **one.to_dict()} for strength, one in curve.items()]
        for client, curve in curves.items()
    }
    mean = []
    for strength in STRENGTHS:
        at = mean_accuracy(curve[strength] for curve in curves.values())
        mean.append({"strength": strength, **at.to_dict()})
    return {"mean": mean, "clients": clients, "default": dict(found.strengths)}


def _interval(accuracy: float | None, images: int) -> list[float] | None:
    return None if accuracy is None else wilson(round(accuracy * images / 100), images)


def _cost(run: Run) -> dict[str, Any]:
    """Parameters by scope, bytes of a client in a round, and what all rounds took."""
    return {
        "parameters": run.manifest["parameters"],
        "bytes_per_round": run.manifest["bytes_per_round"],
        **total_cost(run.rounds),
    }
