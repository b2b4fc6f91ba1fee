"""The models of a bundle that is about to be published, against the trained model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfedmma_deploy.adapters.base import Adapter, Frozen
from pfedmma_deploy.backbone.clip import class_texts
from pfedmma_deploy.data.class_names import build_prompts
from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.export.describe import SIGNATURES
from pfedmma_deploy.export.parity import (
    TOLERANCE,
    Parity,
    check_model,
    compare,
    cosines,
    largest_difference,
    run_clients,
    sampled,
)
from pfedmma_deploy.runtime.bundle import CLASSIFIER_MODEL, TEXT_MODEL, VISION_MODEL
from pfedmma_deploy.runtime.manifest import Manifest

if TYPE_CHECKING:
    import onnxruntime

    from pfedmma_deploy.backbone.clip import Backbone
    from pfedmma_deploy.export.banks import ExportClient

Features = NDArray[np.float32]
BATCH = 64


@dataclass(frozen=True)
class Trained:
    """The trained side, which an export is compared with."""

    backbone: Backbone
    models: Sequence[Adapter]
    """Its adapters by client index; the first adds nothing."""
    tokens: Sequence[Tensor]
    """Token ids of the class prompts by client index, [C, context] each."""
    text: Features
    """Its text features, [clients, C, D]."""
    images: NDArray[np.uint8]
    """What to compare on, uint8 [N, H, W, 3]."""


@torch.inference_mode()
def trained_side(
    backbone: Backbone,
    clients: Sequence[ExportClient],
    adapter: Mapping[str, Any],
    class_names: Sequence[str],
    prompt: str,
    images: NDArray[np.uint8],
) -> Trained:
    """The trained side: every client's own encoders, prompts and text features."""
    models = [Frozen(), *(client.adapter for client in clients)]
    texts = class_texts(backbone, class_names, prompt)
    own = backbone.tokenize(build_prompts(class_names, adapter.get("prompt", prompt)))
    features = [model.encode_text(backbone, texts).float().cpu().numpy() for model in models]
    tokens = [texts.prompts, *[own] * len(clients)]
    return Trained(backbone, models, tokens, np.stack(features), images)


def verify_models(
    folder: Path, trained: Trained, manifest: Manifest, *, is_exact: bool = True
) -> Parity:
    """Check every model in `folder`: structure, signature, values for every client, mixed batch.

    Args:
        folder: where the ONNX files are.
        trained: what they must compute.
        manifest: what the bundle claims.
        is_exact: whether values must agree; without it they are measured, and must be finite.

    Raises:
        ExportError: a model is invalid or differs from the trained one; with the figures.
    """
    images, models, text = trained.images, trained.models, trained.text
    share = sampled(len(images), len(models))
    with torch.inference_mode():
        each = [
            _encode_images(trained.backbone, images[own], model)
            for own, model in zip(share, models, strict=True)
        ]
    # One call per client, then all clients interleaved: they must not influence each other.
    rows = np.concatenate([share.ravel(), share.T.ravel()])
    alone = np.repeat(np.arange(len(models)), share.shape[1])
    mixed = np.tile(np.arange(len(models)), share.shape[1])
    clients = np.concatenate([alone, mixed])
    wanted = np.concatenate([*each, np.stack(each, axis=1).reshape(-1, manifest.embed_dim)])

    vision = _open(folder / VISION_MODEL, manifest)
    by_client = [
        run_clients(vision, images[own], np.full(len(own), i)) for i, own in enumerate(share)
    ]
    exported = np.concatenate([*by_client, run_clients(vision, images[share.T.ravel()], mixed)])
    text_error = _text_error(folder, manifest, trained.tokens, text)
    limits = {} if is_exact else {"tolerance": math.inf, "least_agreement": 0.0}
    parity = compare(exported, wanted, text, clients, text_error, **limits)
    if (folder / CLASSIFIER_MODEL).exists():
        session = _open(folder / CLASSIFIER_MODEL, manifest)
        logits = run_clients(session, images[rows], clients)
        scores = logits / manifest.logit_scale
        require_scores(scores, cosines(wanted, text, clients), TOLERANCE if is_exact else math.inf)
    return parity


def _text_error(
    folder: Path, manifest: Manifest, tokens: Sequence[Tensor], text: Features
) -> float:
    """Largest difference between the text towers, for every client, all clients in every batch."""
    share = sampled(text.shape[1], len(text))
    prompts = share.T.ravel()
    owners = np.tile(np.arange(len(text)), share.shape[1])
    read = torch.stack([tokens[own][row] for own, row in zip(owners, prompts, strict=True)])
    found = run_clients(_open(folder / TEXT_MODEL, manifest), read.cpu().numpy(), owners)
    return largest_difference(found, text[owners, prompts])


def require_scores(scores: Features, wanted: Features, tolerance: float) -> None:
    """Raises `ExportError` where the classifier's cosines [N, C] are not those wanted."""
    error = largest_difference(scores, wanted)
    if not error <= tolerance:
        raise ExportError(
            f"{CLASSIFIER_MODEL} differs from the trained model by {error:.2e} in a cosine "
            f"(accepted {tolerance:.0e}). Nothing was written; please report this with the "
            "name of the backbone."
        )


def _encode_images(backbone: Backbone, images: NDArray[np.uint8], model: Adapter) -> Features:
    parts = [
        model.encode_image(backbone, chunk).float().cpu()
        for chunk in torch.split(torch.from_numpy(images), BATCH)
    ]
    features: Features = torch.cat(parts).numpy()
    return features


def _open(file: Path, manifest: Manifest) -> onnxruntime.InferenceSession:
    """A session for one of the models, its structure and signature found right."""
    signature = SIGNATURES[file.name]
    items, clients = signature.inputs
    size = manifest.preprocessing.image_size
    if file.name == TEXT_MODEL:
        first: tuple[str, list[int | str]] = (
            "tensor(int64)",
            [signature.axis, manifest.context_length],
        )
    else:
        first = "tensor(uint8)", [signature.axis, size, size, 3]
    classifies = file.name == CLASSIFIER_MODEL
    width = len(manifest.class_names) if classifies else manifest.embed_dim
    return check_model(
        file,
        {items: first, clients: ("tensor(int64)", [signature.axis])},
        {signature.output: ("tensor(float)", [signature.axis, width])},
    )
