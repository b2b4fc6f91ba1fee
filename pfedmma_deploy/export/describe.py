"""What a bundle says about itself: signatures, manifest, training, metadata in the ONNX files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pfedmma_deploy import __version__
from pfedmma_deploy.evaluation.accuracy import Accuracy
from pfedmma_deploy.export.banks import ExportClient
from pfedmma_deploy.export.export_config import ExportConfig
from pfedmma_deploy.export.onnx_file import OPSET
from pfedmma_deploy.federated.evaluate import RunEvaluation, evaluate_run
from pfedmma_deploy.federated.session import Session
from pfedmma_deploy.progress import Progress
from pfedmma_deploy.runtime import bundle as names
from pfedmma_deploy.runtime.manifest import (
    ZERO_SHOT,
    ClientHistory,
    ClientInfo,
    Figures,
    History,
    Manifest,
    Preprocessing,
)
from pfedmma_deploy.store.run import Run
from pfedmma_deploy.types import ClientData, Federation

if TYPE_CHECKING:
    from pfedmma_deploy.backbone.clip import Backbone

MOST_IMAGES = 30_000
"""Images through a tower beyond which an export does not measure accuracies by itself."""


@dataclass(frozen=True, slots=True)
class ModelSignature:
    """Inputs and output of one of the models, by name."""

    inputs: tuple[str, str]
    output: str
    axis: str
    """Name of the dimension of any length."""
    description: str


SIGNATURES: Mapping[str, ModelSignature] = {
    names.VISION_MODEL: ModelSignature(
        ("pixel_values", "client"), "image_embeds", "batch", "CLIP image tower"
    ),
    names.TEXT_MODEL: ModelSignature(
        ("input_ids", "client"), "text_embeds", "prompts", "CLIP text tower"
    ),
    names.CLASSIFIER_MODEL: ModelSignature(
        ("pixel_values", "client"), "logits", "batch", "CLIP image classifier"
    ),
}


def manifest(
    backbone: Backbone,
    clients: Sequence[ExportClient],
    *,
    class_names: Sequence[str],
    prompt: str,
    base: Sequence[int],
    novel: Sequence[int],
    adapter: Mapping[str, Any],
    logit_scale: float,
    config: ExportConfig,
    provenance: Mapping[str, Any],
    history: History | None = None,
) -> Manifest:
    """The manifest of a bundle whose files are not written yet."""
    rows = [ClientInfo(0, ZERO_SHOT, ())]
    for index, client in enumerate(clients, start=1):
        rows.append(ClientInfo(index, client.id, tuple(sorted(map(int, client.seen)))))
    versions = {"pfedmma_deploy": __version__}
    for package in ("torch", "open_clip_torch", "onnx", "onnxscript", "tokenizers"):
        versions[package] = version(package)
    return Manifest(
        clients=tuple(rows),
        class_names=tuple(class_names),
        base=tuple(map(int, base)),
        novel=tuple(map(int, novel)),
        prompt=prompt,
        logit_scale=logit_scale,
        preprocessing=Preprocessing(
            image_size=backbone.image_size,
            resize_mode=backbone.resize_mode,
            interpolation=backbone.interpolation,
            mean=backbone.mean,
            std=backbone.std,
        ),
        embed_dim=backbone.embed_dim,
        context_length=backbone.context_length,
        flavour=config.flavour,
        precision=config.precision,
        # Half-precision arithmetic has half-precision weights, whatever was asked for.
        weights="fp16" if config.precision == "fp16" else config.weights,
        opset=OPSET,
        backbone={
            "name": backbone.name,
            "pretrained": backbone.pretrained,
            "fingerprint": backbone.fingerprint,
            "activation": backbone.activation,
        },
        adapter=dict(adapter),
        provenance={**provenance, "versions": versions},
        parity={},
        quality={},
        files={},
        history=history,
    )


def metadata(base: Manifest, name: str) -> dict[str, str]:
    """`metadata_props` of one model: enough to use the file alone.

    `description`, `task`, `version`, `license`, `imgsz`, `batch`, `channels`, `names` and `args`
    mean what they mean in Ultralytics' exports, and are written as there (Python literals); the
    rest is JSON. There is no `date`: equal models are equal files.
    """
    pre = base.preprocessing
    arguments = {
        "batch": 1,
        "dynamic": True,
        "half": base.precision == "fp16",
        "int8": base.precision == "int8",
        "opset": base.opset,
    }
    return {
        "description": f"{SIGNATURES[name].description}, {base.backbone['name']}, "
        f"{len(base.clients) - 1} clients",
        "task": "classify" if name == names.CLASSIFIER_MODEL else "embed",
        "version": __version__,
        "license": "the backbone's own; see README.md of the bundle",
        "imgsz": str([pre.image_size, pre.image_size]),
        "batch": "1",
        "channels": "3",
        "names": str(dict(enumerate(base.class_names))),
        "args": str(arguments),
        "clients": json.dumps([client.id for client in base.clients]),
        "prompt": base.prompt,
        "logit_scale": repr(base.logit_scale),
        "preprocessing": json.dumps(
            {"resize_mode": pre.resize_mode, "interpolation": pre.interpolation}
        ),
        "flavour": base.flavour,
        "precision": base.precision,
        "weights": base.weights,
        "backbone": json.dumps(dict(base.backbone)),
        "adapter": json.dumps(dict(base.adapter)),
    }


def measure(
    run: Run, session: Session, clients: Collection[str], progress: Progress
) -> RunEvaluation | None:
    """Accuracies of these clients; None, which is said, where there are too many test images."""
    federation = session.federation
    tests = len(federation.base_test) + len(federation.novel_test)
    count = tests * (1 + sum(client.id in clients for client in federation.clients))
    if count > MOST_IMAGES:
        progress.note(
            f"The bundle will not say how accurate its clients are: that takes {count:,} images "
            f"through the model, more than {MOST_IMAGES:,}; `pfedmma evaluate` measures it."
        )
        return None
    return evaluate_run(run, clients=clients, session=session, progress=progress)


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
    sent = 0.0
    for entry in run.rounds:
        both_ways = entry["bytes_up_per_client"] + entry["bytes_down_per_client"]
        sent += len(entry["clients"]) * both_ways
    data = {client.id: client for client in federation.clients}
    histories = {}
    for client in clients:
        before = measured.zero_shot.get(client) if measured else None
        after = measured.personalized.get(client) if measured else None
        counts = _counts(data.get(client), class_count)
        histories[client] = ClientHistory(counts, _figures(before), _figures(after))
    traffic = run.manifest["bytes_per_round"]
    return History(
        rounds=len(run.rounds),
        bytes_up_per_client_round=traffic["up"],
        bytes_down_per_client_round=traffic["down"],
        bytes_total=round(sent),
        parameters=dict(run.manifest["parameters"]),
        clients=histories,
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
