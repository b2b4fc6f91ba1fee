"""`pfedmma export`: the clients of a run become one bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.adapters.graph_form import GraphForm
from pfedmma_deploy.data.class_names import class_key
from pfedmma_deploy.errors import ExportError, UsageError, nearest
from pfedmma_deploy.evaluation.accuracy import unique
from pfedmma_deploy.evaluation.run import RunEvaluation
from pfedmma_deploy.export.bundle import ExportReport, export_bundle
from pfedmma_deploy.export.clients import ExportClient
from pfedmma_deploy.export.form import Form
from pfedmma_deploy.export.history import measure, run_history
from pfedmma_deploy.export.quality import Evaluation
from pfedmma_deploy.methods.base import Method, Tensors
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.store.run import Run
from pfedmma_deploy.store.workspace import (
    Workspace,
    full_precision,
    load_client_adapter,
    load_client_tensors,
    open_run_workspace,
)
from pfedmma_deploy.types import Example

PARITY_IMAGES = 64
"""Test images, spread over the classes, on which a bundle is compared with torch."""


def export_run(
    run: Run,
    out: Path,
    *,
    clients: Sequence[str] | None = None,
    classifier: bool = False,
    form: Form | None = None,
    measured: RunEvaluation | None = None,
    workspace: Workspace | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Write the bundle `out` from a finished run.

    Args:
        run: the run.
        out: bundle folder; a pfedmma bundle there is replaced once the new one has passed.
        clients: ids in the order of their index from 1; None takes all, also those that joined
            with images of their own, whose new class names follow the run's.
        classifier: add `classifier.onnx`.
        form: operators, precision and storage; what is less exact than fp32 is judged on the run's
            test images first.
        measured: accuracies of the clients for the bundle's history, where they are known already;
            else they are measured.
        workspace: the run's, where it is open already.
        progress: told of the steps.

    Raises:
        UsageError: an unknown client.
        ExportError: the method has no graph, the bundle is not equal to the trained model, or its
            form loses too much.
    """
    run.require_complete()
    chosen = chosen_clients(run, clients)
    workspace = full_precision(workspace or open_run_workspace(run))
    graph = _require_exportable(workspace.method)
    shared = run.load_shared()
    stored = [run.load_client(client) for client in chosen]
    names: list[str] = list(run.manifest["class_names"])
    # Two newcomers may write the same class as "Lighthouse" and "lighthouse".
    label_of = {class_key(name): i for i, name in enumerate(names)}
    for name in (name for client in stored for name in client.config["seen"]):
        if label_of.setdefault(class_key(name), len(names)) == len(names):
            names.append(name)
    parameters, members = workspace.method.configure(run.config.parameters), []
    for one in stored:
        adapter = workspace.build_adapter()
        load_client_adapter(workspace.method, adapter, one, shared)
        seen = [label_of[class_key(name)] for name in one.config["seen"]]
        tensors = load_client_tensors(workspace.method, one, shared)
        taken = graph(tensors, parameters)
        members.append(ExportClient(one.id, taken.tensors, seen, trained=adapter))
    config, form = run.config, form or Form()
    novel = [names.index(name) for name in run.manifest["novel"]]
    # Where a domain was left out, novel may be the classes that were trained on, looking otherwise.
    unseen = set(run.manifest["novel"]) - set(run.manifest["base"])
    measured = measured or measure(run, workspace, chosen, progress or Silent())
    return export_bundle(
        workspace.backbone,
        members,
        out,
        class_names=names,
        prompt=config.prompt,
        base=[label for label, name in enumerate(names) if name not in unseen],
        novel=novel,
        adapter={"method": workspace.method.name, **taken.settings},
        logit_scale=workspace.logit_scale,
        parity_images=workspace.pixels.load(parity_examples(workspace)),
        provenance={
            "run": run.folder.resolve().name,
            "data": Path(config.data).name,
            "config": {**config.to_options(), "data": Path(config.data).name},
            "rounds": config.rounds,
            "personalized": [c.id for c in stored if c.config["personalized"] is not None],
        },
        classifier=classifier,
        form=form,
        evaluation=None if form.is_exact else _evaluation(workspace),
        history=run_history(run, workspace.federation, chosen, len(names), measured),
        progress=progress,
    )


def chosen_clients(run: Run, clients: Sequence[str] | None) -> list[str]:
    """These clients, or all. Raises `UsageError` where the run has no such client."""
    chosen = list(run.client_ids if clients is None else clients)
    for client in chosen:
        if client not in run.client_ids:
            hint = nearest(client, run.client_ids) or "."
            raise UsageError(f"The run {run.folder} has no client {client!r}{hint}")
    return chosen


def _require_exportable(method: Method) -> Callable[[Tensors, Any], GraphForm]:
    """What makes a client of the method fit a graph; raises `ExportError` with its reason."""
    if method.graph is None:
        raise ExportError(f"The clients of {method.name} cannot be exported: {method.obstacle}.")
    return method.graph


def _evaluation(workspace: Workspace) -> Evaluation:
    """The run's test images: all base and novel ones, and which are each client's own."""
    federation = workspace.federation
    own = {client.id: client.test for client in federation.clients}
    examples = unique([*federation.base_test, *federation.novel_test, *chain(*own.values())])
    row_of = {example.key: row for row, example in enumerate(examples)}

    def rows(chosen: Sequence[Example]) -> NDArray[np.int64]:
        return np.array([row_of[example.key] for example in chosen], np.int64)

    return Evaluation(
        pixels=workspace.pixels.load(examples),
        labels=np.array([example.label for example in examples], np.int64),
        base=rows(federation.base_test),
        novel=rows(federation.novel_test),
        local={client: rows(tests) for client, tests in own.items()},
    )


def parity_examples(workspace: Workspace) -> list[Example]:
    """Test images of all classes in turn."""
    federation = workspace.federation
    tests = [*federation.base_test, *federation.novel_test]
    rows = np.linspace(0, len(tests) - 1, min(PARITY_IMAGES, len(tests))).round().astype(int)
    ordered = sorted(tests, key=lambda example: example.label)
    return [ordered[row] for row in rows]
