"""What a bundle says about itself: signatures, manifest, metadata inside the ONNX files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfedmma_deploy import __version__
from pfedmma_deploy.export.clients import ExportClient
from pfedmma_deploy.export.form import Form
from pfedmma_deploy.export.onnx_file import OPSET
from pfedmma_deploy.runtime import bundle as names
from pfedmma_deploy.runtime.manifest import (
    ZERO_SHOT,
    ClientInfo,
    FileInfo,
    History,
    Manifest,
    Preprocessing,
)

if TYPE_CHECKING:
    from pfedmma_deploy.backbone.clip import Backbone

__all__ = ["SIGNATURES", "ModelSignature", "manifest", "metadata", "with_files"]


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
    form: Form,
    provenance: Mapping[str, Any],
    history: History | None = None,
) -> Manifest:
    """The manifest of a bundle whose files are not written yet."""
    rows = [ClientInfo(0, ZERO_SHOT, ())]
    for index, client in enumerate(clients, start=1):
        rows.append(ClientInfo(index, client.id, tuple(sorted(map(int, client.seen)))))
    packages = ("torch", "open_clip_torch", "onnx", "onnxscript", "tokenizers")
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
        flavour=form.flavour,
        precision=form.precision,
        weights="fp16" if form.precision == "fp16" else form.weights,
        opset=OPSET,
        backbone={
            "name": backbone.name,
            "pretrained": backbone.pretrained,
            "fingerprint": backbone.fingerprint,
            "activation": backbone.activation,
        },
        adapter=dict(adapter),
        provenance={
            **provenance,
            "versions": {
                "pfedmma_deploy": __version__,
                **{package: version(package) for package in packages},
            },
        },
        parity={},
        quality={},
        files={},
        history=history,
    )


def with_files(base: Manifest, folder: Path, parity: Mapping[str, Any]) -> Manifest:
    """The manifest with the parity report, and sizes and hashes of what is in the folder."""
    files = {
        path.name: FileInfo(path.stat().st_size, names.file_sha256(path))
        for path in sorted(folder.iterdir())
        if path.name != names.MANIFEST
    }
    return replace(base, files=files, parity=parity)


def metadata(base: Manifest, name: str) -> dict[str, str]:
    """`metadata_props` of one model: enough to use the file alone.

    `description`, `task`, `version`, `license`, `imgsz`, `batch`, `channels`, `names` and `args`
    mean what they mean in Ultralytics' exports, and are written as there (Python literals); the
    rest is JSON. There is no `date`: equal models are equal files.
    """
    size = base.preprocessing.image_size
    settings = base.preprocessing
    return {
        "description": f"{SIGNATURES[name].description}, {base.backbone['name']}, "
        f"{len(base.clients) - 1} clients",
        "task": "classify" if name == names.CLASSIFIER_MODEL else "embed",
        "version": __version__,
        "license": "the backbone's own; see README.md of the bundle",
        "imgsz": str([size, size]),
        "batch": "1",
        "channels": "3",
        "names": str(dict(enumerate(base.class_names))),
        "args": str(
            {
                "batch": 1,
                "dynamic": True,
                "half": base.precision == "fp16",
                "int8": base.precision == "int8",
                "opset": base.opset,
            }
        ),
        "clients": json.dumps([client.id for client in base.clients]),
        "prompt": base.prompt,
        "logit_scale": repr(base.logit_scale),
        "preprocessing": json.dumps(
            {"resize_mode": settings.resize_mode, "interpolation": settings.interpolation}
        ),
        "flavour": base.flavour,
        "precision": base.precision,
        "weights": base.weights,
        "backbone": json.dumps(dict(base.backbone)),
        "adapter": json.dumps(dict(base.adapter)),
    }
