"""The models of a bundle that is about to be published, against the trained model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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

    from pfedmma_deploy.backbone.blocks import BlockHook
    from pfedmma_deploy.backbone.clip import Backbone

__all__ = ["Trained", "verify_models"]

Features = NDArray[np.float32]
BATCH = 64


@dataclass(frozen=True)
class Trained:
    """The trained side, which an export is compared with."""

    backbone: Backbone
    hooks: Sequence[BlockHook | None]
    """Its adapters by client index; None for zero-shot."""
    tokens: Tensor
    """Token ids of the class prompts, [C, context]."""
    text: Features
    """Its text features, [clients, C, D]."""
    images: NDArray[np.uint8]
    """What to compare on, uint8 [N, H, W, 3]."""


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
    images, hooks, text = trained.images, trained.hooks, trained.text
    share = sampled(len(images), len(hooks))
    with torch.inference_mode():
        each = [
            _encode_images(trained.backbone, images[own], hook)
            for own, hook in zip(share, hooks, strict=True)
        ]
    # One call per client, then all clients interleaved: they must not influence each other.
    rows = np.concatenate([share.ravel(), share.T.ravel()])
    alone = np.repeat(np.arange(len(hooks)), share.shape[1])
    mixed = np.tile(np.arange(len(hooks)), share.shape[1])
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


def _text_error(folder: Path, manifest: Manifest, tokens: Tensor, text: Features) -> float:
    """Largest difference between the text towers, for every client, all clients in every batch."""
    share = sampled(len(tokens), len(text))
    prompts = share.T.ravel()
    owners = np.tile(np.arange(len(text)), share.shape[1])
    found = run_clients(_open(folder / TEXT_MODEL, manifest), tokens.cpu().numpy()[prompts], owners)
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


def _encode_images(
    backbone: Backbone, images: NDArray[np.uint8], hook: BlockHook | None
) -> Features:
    parts = [
        backbone.encode_image(chunk, hook).float().cpu()
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
