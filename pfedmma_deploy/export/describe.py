"""What a bundle says about itself: signatures, manifest, training, metadata in the ONNX files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from pfedmma_deploy import __version__
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.export.banks import ExportClient
from pfedmma_deploy.export.certainty import Calibrations
from pfedmma_deploy.export.export_config import ExportConfig
from pfedmma_deploy.export.onnx_file import OPSET
from pfedmma_deploy.runtime import bundle as names
from pfedmma_deploy.runtime.manifest import ZERO_SHOT, ClientInfo, History, Manifest, Preprocessing


@dataclass(frozen=True, slots=True)
class ModelSignature:
    """What one of the models takes and gives.

    Its other inputs are `client`, an index per item, and `strength`, a number per item.
    """

    items: str
    """Name of the first input."""
    output: str
    axis: str
    """Name of the dimension of any length."""
    description: str


SIGNATURES: Mapping[str, ModelSignature] = {
    names.VISION_MODEL: ModelSignature("pixel_values", "image_embeds", "batch", "CLIP image tower"),
    names.TEXT_MODEL: ModelSignature("input_ids", "text_embeds", "prompts", "CLIP text tower"),
    names.CLASSIFIER_MODEL: ModelSignature(
        "pixel_values", "logits", "batch", "CLIP image classifier"
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
    calibrations: Calibrations | None = None,
) -> Manifest:
    """The manifest of a bundle whose files are not written yet."""
    strength = clients[0].adapter.interpolation
    assert strength != "scores", "`require_strength` has refused it"
    rows = [ClientInfo(0, ZERO_SHOT, ())]
    for index, client in enumerate(clients, start=1):
        seen = tuple(sorted(map(int, client.seen)))
        rows.append(ClientInfo(index, client.id, seen, client.default_strength))
    if calibrations is not None:
        for index, found in enumerate(calibrations.clients):
            known = None if found is None else found.calibration
            rows[index] = replace(rows[index], calibration=known)
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
        strength=strength,
        general_words=() if calibrations is None else calibrations.words,
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
