"""`pfedmma export`: the clients of a run become one bundle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.adapters.base import Adapter, Frozen
from pfedmma_deploy.calibration import ClientCalibration
from pfedmma_deploy.data.class_names import class_key
from pfedmma_deploy.data.pixels import PixelLoader
from pfedmma_deploy.data.samples import SAMPLE_NAMES, load_sample
from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.evaluation.accuracy import Accuracy, unique
from pfedmma_deploy.evaluation.calibrate import competing_words
from pfedmma_deploy.export.banks import ExportClient
from pfedmma_deploy.export.bundle import ExportReport, export_bundle
from pfedmma_deploy.export.certainty import Calibrations
from pfedmma_deploy.export.export_config import ExportConfig
from pfedmma_deploy.export.quality import Evaluation
from pfedmma_deploy.federated.evaluate import Curve, RunEvaluation, evaluate_run, strength_curves
from pfedmma_deploy.federated.session import Session, open_run_session
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.runtime.manifest import ClientHistory, CurvePoint, Figures, History
from pfedmma_deploy.store.run import Run, StoredClient
from pfedmma_deploy.types import STRENGTHS, Example, Federation

PARITY_IMAGES = 64
"""Test images, spread over the classes, on which a bundle is compared with torch."""
MOST_IMAGES = 30_000
"""Images through a tower beyond which an export does not measure accuracies by itself."""
MOST_FITTED = 2000
"""Images of all clients together that zero-shot is calibrated on."""
MOST_CURVE_IMAGES = 60_000
"""The same for the accuracies at other strengths than 0 and 1."""


def export_run(
    run: Run,
    out: Path,
    *,
    clients: Sequence[str] | None = None,
    classifier: bool = False,
    config: ExportConfig | None = None,
    measured: RunEvaluation | None = None,
    strengths: Sequence[float] = STRENGTHS,
    session: Session | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Write the bundle `out` from a finished run.

    Args:
        run: the run.
        out: bundle folder; a pfedmma bundle there is replaced once the new one has passed.
        clients: ids in the order of their index from 1; None takes all, also those that joined
            with images of their own, whose new class names follow the run's.
        classifier: add `classifier.onnx`.
        config: operators, precision and storage; reduced precision is judged on the run's
            test images first.
        measured: accuracies of the clients for the bundle's history, where they are known already;
            else they are measured.
        strengths: at which accuracies are measured for it beside 0 and 1.
        session: the run's, where it is open already.
        progress: told of the steps.

    Raises:
        UsageError: an unknown client.
        ExportError: the method's clients cannot be exported, the bundle is not equal to the trained
            model, or reduced precision loses too much.
    """
    run.require_complete()
    chosen = run.client_ids if clients is None else clients
    if run.role == "server" and not chosen:
        raise ExportError(
            f"{run.folder} has no client: those of a federation across machines are at their "
            "sites. Ask a site for its folder clients/SITE, and take it in with `pfedmma fleet "
            "accept`."
        )
    # Before anything that takes long: an id may be mistyped.
    stored = [run.load_client(client) for client in chosen]
    session = (session or open_run_session(run)).full_precision()
    if session.method.export_blocker:
        raise ExportError(
            f"The clients of {session.method.name} cannot be exported: "
            f"{session.method.export_blocker}."
        )
    shared = run.load_shared()
    names, seen = _number_classes(run.manifest["class_names"], stored)
    taken = [
        ExportClient(one.id, session.client_model(one, shared).eval(), labels, one.default_strength)
        for one, labels in zip(stored, seen, strict=True)
    ]
    config, training = config or ExportConfig(), run.config
    if run.role == "server" and not config.is_exact:
        raise ExportError(
            f"{run.folder} has no images, and reduced precision is judged on test images: export "
            "it in fp32, or export at a site."
        )
    novel = [names.index(name) for name in run.manifest["novel"]]
    # Where a domain was left out, novel may be the trained classes in another domain.
    unseen = set(run.manifest["novel"]) - set(run.manifest["base"])
    report = progress or Silent()
    calibrations = run_calibrations(run, session, stored, [one.adapter for one in taken], names)
    measured = measured or measure(run, session, chosen, report)
    curves = measure_curves(run, session, measured, strengths, report)
    return export_bundle(
        session.backbone,
        taken,
        out,
        class_names=names,
        prompt=training.prompt,
        base=[label for label, name in enumerate(names) if name not in unseen],
        novel=novel,
        method=session.method.name,
        logit_scale=session.logit_scale,
        parity_images=parity_pixels(session),
        provenance={
            "run": run.folder.resolve().name,
            "data": Path(training.data).name,
            "config": {**training.to_options(), "data": Path(training.data).name},
            "rounds": training.rounds,
            "personalized": [c.id for c in stored if c.config["personalized"] is not None],
        },
        classifier=classifier,
        config=config,
        evaluation=None if config.is_exact else _evaluation(session),
        calibrations=calibrations,
        history=run_history(run, session.federation, chosen, len(names), measured, curves),
        progress=progress,
    )


def run_calibrations(
    run: Run,
    session: Session,
    stored: Sequence[StoredClient],
    adapters: Sequence[Adapter],
    class_names: Sequence[str],
) -> Calibrations | None:
    """The clients' calibrations, and that of zero-shot on all their images together.

    Clients of older runs, which have none, get theirs here. None where there is none at all.

    Args:
        run: the run.
        session: its, with the images.
        stored: the clients as the run has them.
        adapters: their models.
        class_names: of the bundle.
    """
    calibrator = session.calibrator
    members = {client.id: client for client in session.federation.clients}
    found: list[ClientCalibration | None] = []
    for client, adapter in zip(stored, adapters, strict=True):
        if "calibration" in client.config:
            entry = client.config["calibration"]
            found.append(
                ClientCalibration.from_dict(entry, f"client {client.id!r} of {run.folder}")
            )
        elif client.id in members:
            member, strength = members[client.id], float(client.config.get("default_strength", 1))
            model = adapter.at(strength)
            found.append(calibrator.fit(model, member.train, member.val, strength))
        else:
            found.append(None)
    if not any(found):
        return None
    own = [members[client.id] for client in stored if client.id in members]
    train = unique(chain.from_iterable(client.train for client in own))
    val = unique(chain.from_iterable(client.val for client in own))
    plain = calibrator.fit(Frozen(), _some(train), _some(val), 1.0)
    # Classes that newcomers brought do not compete with themselves.
    words = competing_words(class_names)
    kept = [place for place, word in enumerate(calibrator.words) if word in words]
    general = calibrator.general[kept].astype(np.float32)
    chosen = tuple(calibrator.words[place] for place in kept)
    return Calibrations(chosen, general, (plain, *found))


def _some(examples: Sequence[Example]) -> list[Example]:
    """At most `MOST_FITTED` of the images, evenly spaced."""
    rows = np.linspace(0, len(examples) - 1, min(MOST_FITTED, len(examples)))
    return [examples[row] for row in rows.round().astype(int)]


def _number_classes(
    known: Sequence[str], clients: Sequence[StoredClient]
) -> tuple[list[str], list[list[int]]]:
    """All class names in label order, the run's first, and the labels that each client has seen."""
    names = list(known)
    # Two newcomers may write the same class as "Lighthouse" and "lighthouse".
    label_of = {class_key(name): label for label, name in enumerate(names)}
    seen = []
    for client in clients:
        for name in client.config["seen"]:
            if label_of.setdefault(class_key(name), len(names)) == len(names):
                names.append(name)
        seen.append([label_of[class_key(name)] for name in client.config["seen"]])
    return names, seen


def _evaluation(session: Session) -> Evaluation:
    """The run's test images: all base and novel ones, and which are each client's own."""
    federation = session.federation
    own = {client.id: client.test for client in federation.clients}
    examples = unique([*federation.base_test, *federation.novel_test, *chain(*own.values())])
    row_of = {example.key: row for row, example in enumerate(examples)}

    def rows(chosen: Sequence[Example]) -> NDArray[np.int64]:
        return np.array([row_of[example.key] for example in chosen], np.int64)

    return Evaluation(
        pixels=session.pixels.load(examples),
        labels=np.array([example.label for example in examples], np.int64),
        base=rows(federation.base_test),
        novel=rows(federation.novel_test),
        local={client: rows(tests) for client, tests in own.items()},
    )


def parity_examples(session: Session) -> list[Example]:
    """Test images of all classes in turn."""
    federation = session.federation
    tests = [*federation.base_test, *federation.novel_test]
    rows = np.linspace(0, len(tests) - 1, min(PARITY_IMAGES, len(tests))).round().astype(int)
    ordered = sorted(tests, key=lambda example: example.label)
    return [ordered[row] for row in rows]


def parity_pixels(session: Session) -> NDArray[np.uint8]:
    """Images on which a bundle is compared with torch, uint8 [N, H, W, 3].

    The run's test images; the server of a federation of sites has none, and takes the sample's.
    """
    examples, pixels = parity_examples(session), session.pixels
    if not examples:
        sample = load_sample(SAMPLE_NAMES[0])
        pixels = PixelLoader(sample, pixels.size, pixels.resize_mode, pixels.interpolation)
        examples = list(sample.examples[:: len(sample.examples) // PARITY_IMAGES + 1])
    return pixels.load(examples)


def measure(
    run: Run, session: Session, clients: Collection[str], progress: Progress
) -> RunEvaluation | None:
    """Accuracies of these clients; None, which is said, where there are too many test images."""
    federation = session.federation
    tests = len(federation.base_test) + len(federation.novel_test)
    if not tests:
        progress.note("The bundle will not say how accurate its clients are: no test images here.")
        return None
    count = tests * (1 + sum(client.id in clients for client in federation.clients))
    if count > MOST_IMAGES:
        progress.note(
            f"The bundle will not say how accurate its clients are: that takes {count:,} images "
            f"through the model, more than {MOST_IMAGES:,}; `pfedmma evaluate` measures it."
        )
        return None
    return evaluate_run(run, clients=clients, session=session, progress=progress)


def measure_curves(
    run: Run,
    session: Session,
    measured: RunEvaluation | None,
    strengths: Sequence[float],
    progress: Progress,
) -> Mapping[str, Curve]:
    """What the measured clients reach by strength; empty, which is said, where it would be long."""
    if measured is None:
        return {}
    federation = session.federation
    tests = len(federation.base_test) + len(federation.novel_test)
    count = tests * len(measured.personalized) * len({*strengths} - {0, 1})
    if count > MOST_CURVE_IMAGES:
        progress.note(
            "The bundle will not say how accurate its clients are at other strengths than 1: that "
            f"takes {count:,} images through the model, more than {MOST_CURVE_IMAGES:,}; export "
            "fewer clients with --client to have it measured."
        )
        return {}
    return strength_curves(run, measured, session, strengths, progress)


def run_history(
    run: Run,
    federation: Federation,
    clients: Sequence[str],
    class_count: int,
    measured: RunEvaluation | None,
    curves: Mapping[str, Curve],
) -> History:
    """Rounds, traffic, and for each of `clients` its images per class and its accuracies.

    Args:
        run: a finished run.
        federation: the run's.
        clients: ids of the bundle's clients.
        class_count: of the bundle; its first classes are the run's.
        measured: accuracies of the run's clients; None leaves them out.
        curves: the same by strength, of the clients that have them.
    """
    sent = 0.0
    for entry in run.rounds:
        both_ways = entry["bytes_up_per_client"] + entry["bytes_down_per_client"]
        sent += len(entry["clients"]) * both_ways
    data = {client.id: client.train for client in federation.clients}
    sides = (measured.zero_shot, measured.personalized) if measured else ({}, {})
    histories = {}
    for client in clients:
        counts: tuple[int, ...] = ()
        # A client that joined with images of its own has none in the federation.
        if client in data:
            found = Counter(example.label for example in data[client])
            counts = tuple(found[label] for label in range(class_count))
        before, after = (_figures(side.get(client)) for side in sides)
        curve = []
        for strength, one in curves.get(client, {}).items():
            figures = one.local, one.base, one.novel, one.all
            curve.append(CurvePoint(*figures, strength=strength))
        histories[client] = ClientHistory(counts, before, after, tuple(curve))
    traffic = run.manifest["bytes_per_round"]
    return History(
        rounds=len(run.rounds),
        bytes_up_per_client_round=traffic["up"],
        bytes_down_per_client_round=traffic["down"],
        bytes_total=round(sent),
        parameters=dict(run.manifest["parameters"]),
        clients=histories,
    )


def _figures(found: Accuracy | None) -> Figures | None:
    if found is None:
        return None
    return Figures(found.local, found.base, found.novel, found.all)
