"""Is the exported model the trained model? Measured before a bundle gets its name.

Structure by onnx.checker; names, shapes and dtypes of inputs and outputs; values against torch, for
every client at several strengths and for a batch that mixes all of them; and whether both choose
the same class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfedmma_deploy.adapters.base import Adapter, Frozen, mix_features
from pfedmma_deploy.backbone.clip import Backbone, class_texts
from pfedmma_deploy.calibration import known_scores
from pfedmma_deploy.data.class_names import build_prompts
from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.export.banks import CLIENT_INPUT, STRENGTH_INPUT, ExportClient
from pfedmma_deploy.export.certainty import Calibrations
from pfedmma_deploy.export.describe import SIGNATURES
from pfedmma_deploy.runtime.bundle import CLASSIFIER_MODEL, TEXT_MODEL, VISION_MODEL
from pfedmma_deploy.runtime.manifest import Manifest
from pfedmma_deploy.runtime.providers import model_inputs

Features = NDArray[np.float32]
TOLERANCE = 1e-4
"""Largest accepted difference of one number of an L2-normalised fp32 feature."""
LEAST_AGREEMENT = 99.0
"""Percent of the images for which both must choose the same class."""
STRENGTHS = (1.0, 0.5, 0.0, 1.5)
"""At which clients are compared, one image after the other."""
BATCH = 64

Signature = Mapping[str, tuple[str, Sequence[int | str]]]
"""Name -> (ONNX Runtime's type, shape; a text where any length goes)."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far the exported model is from the trained one."""

    max_abs_error: float
    """Largest difference of one number of a feature, images and texts, any client."""
    top1_agreement: float
    """Percent of (image, client) pairs for which both choose the same class."""
    images: int
    """(image, client) pairs compared, the mixed batch included."""


def check_model(file: Path, inputs: Signature, outputs: Signature) -> onnxruntime.InferenceSession:
    """Structure and signature of an ONNX file; returns a CPU session for it.

    Raises:
        ExportError: the file is no valid model, or its inputs or output are not as documented.
    """
    try:
        onnx.checker.check_model(str(file), full_check=True)
        settings = onnxruntime.SessionOptions()
        # It warns of every input that has a default, which the classifier's limits have on purpose.
        settings.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            str(file), settings, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # neither library has a common base for its exceptions
        raise ExportError(f"{file.name} is not a valid ONNX model: {error}") from error
    sides = ("inputs", session.get_inputs(), inputs), ("outputs", session.get_outputs(), outputs)
    for what, nodes, expected in sides:
        found = {node.name: (node.type, list(node.shape)) for node in nodes}
        wanted = {name: (kind, list(shape)) for name, (kind, shape) in expected.items()}
        if found != wanted:
            raise ExportError(f"{file.name} has the {what} {found}, expected {wanted}.")
    return session


def sampled(items: int, clients: int, budget: int = 512) -> NDArray[np.int64]:
    """Which items each client is checked on, [clients, share]: all, or a share that rolls on."""
    share = max(1, min(items, budget // clients))
    starts: NDArray[np.int64] = np.arange(clients)[:, None] * share
    return (starts + np.arange(share)) % items


def run_clients(
    session: onnxruntime.InferenceSession,
    items: NDArray[Any],
    clients: NDArray[np.int64],
    strengths: Features | None = None,
) -> Features:
    """The first output of a model for `items` [N, ...], each with its own client, in batches.

    `strengths` [N] are 1 unless given.
    """
    if strengths is None:
        strengths = np.ones(len(items), np.float32)
    return run_outputs(session, items, clients, strengths)[0]


def run_outputs(
    session: onnxruntime.InferenceSession,
    items: NDArray[Any],
    clients: NDArray[np.int64],
    strengths: Features,
) -> list[NDArray[Any]]:
    """All outputs of a model, as `run_clients` gives the first."""
    found = []
    for start in range(0, len(items), BATCH):
        rows = slice(start, start + BATCH)
        feed = model_inputs(session, items[rows], clients[rows], strengths[rows])
        found.append(session.run(None, feed))
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def alternating(clients: int, share: int) -> Features:
    """The strengths at which each client is checked, [clients, share], all of them in turn."""
    places = np.arange(clients)[:, None] + np.arange(share)
    strengths: Features = np.array(STRENGTHS, np.float32)[places % len(STRENGTHS)]
    return strengths


def cosines(
    features: NDArray[np.float32], text: NDArray[np.float32], clients: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Cosines [N, C] of image features [N, D] with their clients' own texts [clients, C, D]."""
    found = np.empty((len(features), text.shape[1]), np.float32)
    for client in np.unique(clients):
        rows = clients == client
        found[rows] = features[rows] @ text[client].T
    return found


def compare(
    exported: NDArray[np.float32],
    trained: NDArray[np.float32],
    text: NDArray[np.float32],
    clients: NDArray[np.int64],
    text_error: float,
    tolerance: float = TOLERANCE,
    least_agreement: float = LEAST_AGREEMENT,
) -> Parity:
    """Compare the image features of both sides, and the classes that they lead to.

    Args:
        exported: image features by the exported model, [N, D].
        trained: the same by torch, [N, D].
        text: text features of the classes, [clients, C, D]: by torch, as the bundle stores them.
        clients: client index of every row, [N].
        text_error: largest difference found between the text towers.
        tolerance: largest accepted absolute difference.
        least_agreement: percent of the images for which both must choose the same class.

    Raises:
        ExportError: the exported model differs by more than the tolerance; with the figures.
    """
    # numpy's max, because Python's may drop a NaN.
    error = float(np.max([largest_difference(exported, trained), text_error]))
    ours, theirs = cosines(exported, text, clients), cosines(trained, text, clients)
    agreement = 100.0 * float((ours.argmax(1) == theirs.argmax(1)).mean())
    parity = Parity(error, agreement, len(clients))
    # Written so that NaN does not pass.
    if not error <= tolerance or not agreement >= least_agreement:
        raise ExportError(
            f"The exported model is not the trained one: largest difference {error:.2e} "
            f"(accepted {tolerance:.0e}), same class for {agreement:.1f} % of {len(clients)} "
            f"images (accepted {least_agreement:.0f} %). Nothing was written; please report this "
            "with the name of the backbone."
        )
    return parity


def largest_difference(left: NDArray[Any], right: NDArray[Any]) -> float:
    """Of two arrays of one shape; NaN where either has one."""
    return float(np.abs(left.astype(np.float64) - right).max())


@dataclass(frozen=True)
class Trained:
    """The trained side, which an export is compared with."""

    backbone: Backbone
    models: Sequence[Adapter]
    """Its adapters by client index; the first adds nothing."""
    tokens: Sequence[Tensor]
    """Token ids of the class prompts by client index, [C, context] each."""
    text: Features
    """Its text features at strength 1, [clients, C, D]."""
    default_text: Features
    """The same at each client's default strength: what the bundle stores."""
    images: NDArray[np.uint8]
    """What to compare on, uint8 [N, H, W, 3]."""
    class_names: Sequence[str]
    prompt: str
    """Contains `{}`, where the class name goes."""
    logit_scale: float = 1.0
    """Factor on the cosines, of the classifier."""
    calibrations: Calibrations | None = None
    """Of the classifier."""


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
    strengths = [1.0, *(client.default_strength for client in clients)]
    features, defaults = [], []
    for model, strength in zip(models, strengths, strict=True):
        features.append(model.encode_text(backbone, texts).float().cpu().numpy())
        dialled = model.at(strength).encode_text(backbone, texts) if strength != 1 else None
        defaults.append(features[-1] if dialled is None else dialled.float().cpu().numpy())
    tokens = [texts.prompts, *[own] * len(clients)]
    return Trained(
        backbone,
        models,
        tokens,
        np.stack(features),
        np.stack(defaults),
        images,
        class_names,
        prompt,
    )


def verify_models(
    folder: Path, trained: Trained, manifest: Manifest, *, is_exact: bool = True
) -> Parity:
    """Check every model in `folder`: structure, signature, values for every client, mixed batch.

    Clients are compared at all `STRENGTHS`. The classes chosen are those of strength 1's texts.

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
    amounts = alternating(*share.shape)
    vision = _open(folder / VISION_MODEL, manifest)
    each, exported = [], []
    for index, (model, own, given) in enumerate(zip(models, share, amounts, strict=True)):
        each.append(_encode_images(trained.backbone, images[own], model, given))
        exported.append(run_clients(vision, images[own], np.full(len(own), index), given))
    # Then all clients interleaved in every batch: they must not influence each other.
    mixed = np.tile(np.arange(len(models)), share.shape[1])
    exported.append(run_clients(vision, images[share.T.ravel()], mixed, amounts.T.ravel()))
    wanted = np.concatenate([*each, np.stack(each, axis=1).reshape(-1, manifest.embed_dim)])
    clients = np.concatenate([np.repeat(np.arange(len(models)), share.shape[1]), mixed])
    text_error = _text_error(_open(folder / TEXT_MODEL, manifest), trained)
    limits = {} if is_exact else {"tolerance": math.inf, "least_agreement": 0.0}
    parity = compare(np.concatenate(exported), wanted, text, clients, text_error, **limits)
    if (folder / CLASSIFIER_MODEL).exists():
        session = _open(folder / CLASSIFIER_MODEL, manifest)
        rows = np.concatenate([share.ravel(), share.T.ravel()])
        strengths = np.concatenate([amounts.ravel(), amounts.T.ravel()])
        error = _classifier_error(session, trained, images[rows], wanted, clients, strengths)
        error /= manifest.logit_scale
        # Written so that NaN does not pass, here as in `compare`.
        if not error <= (tolerance := TOLERANCE if is_exact else math.inf):
            raise ExportError(
                f"{CLASSIFIER_MODEL} differs from the trained model by {error:.2e} in a cosine "
                f"(accepted {tolerance:.0e}). Nothing was written; please report this with the "
                "name of the backbone."
            )
    return parity


def _classifier_error(
    session: onnxruntime.InferenceSession,
    trained: Trained,
    images: NDArray[np.uint8],
    features: Features,
    clients: NDArray[np.int64],
    strengths: Features,
) -> float:
    """Largest difference of a class score, or of a score of being known, from the trained model.

    Args:
        session: of `classifier.onnx`.
        trained: the trained side.
        images: [N, H, W, 3].
        features: [N, D], of the trained models.
        clients: [N], by index.
        strengths: [N].
    """
    logits = np.empty((len(images), trained.text.shape[1]), np.float64)
    for strength in STRENGTHS:
        at = strengths == strength
        between = _mixed_texts(trained.text, strength)
        logits[at] = cosines(features[at], between, clients[at])
    logits *= trained.logit_scale
    calibrations = trained.calibrations
    found = run_outputs(session, images, clients, strengths)
    if calibrations is None:
        return largest_difference(found[0], logits)
    banks = {name: bank.astype(np.float64)[clients] for name, bank in calibrations.banks().items()}
    general = trained.logit_scale * features.astype(np.float64) @ calibrations.general.T
    closeness = (features * banks["mean"]).sum(axis=1)
    known = known_scores(logits, general, closeness, trained.logit_scale)
    # Where a score lies on its threshold, both answers are right.
    is_clear = np.abs(known - banks["threshold"]) > 1e-3 * trained.logit_scale
    if not np.array_equal((known < banks["threshold"])[is_clear], found[2][is_clear]):
        return math.inf
    scores = found[0] * banks["temperature"][:, None]
    return max(largest_difference(scores, logits), largest_difference(found[1], known))


def _mixed_texts(text: Features, strength: float) -> Features:
    """What `classifier.onnx` has at a strength, of the features [clients, C, D] at strength 1."""
    own, plain = torch.from_numpy(text), torch.from_numpy(text[:1]).expand(text.shape)
    found: Features = mix_features(plain, own, strength).numpy()
    return found


@torch.inference_mode()
def _text_error(session: onnxruntime.InferenceSession, trained: Trained) -> float:
    """Largest difference between the text towers, for every client, all clients in every batch.

    At other strengths than 1 a share of the class names is compared, and nothing where clients read
    other tokens than zero-shot: there features are mixed outside of the graph.
    """
    text = trained.text
    share = sampled(text.shape[1], len(text))
    prompts, owners = share.T.ravel(), np.tile(np.arange(len(text)), share.shape[1])
    tokens = trained.tokens
    read = torch.stack([tokens[own][row] for own, row in zip(owners, prompts, strict=True)])
    found = run_clients(session, read.cpu().numpy(), owners)
    errors = [largest_difference(found, text[owners, prompts])]
    if not torch.equal(tokens[0], tokens[-1]):
        return errors[0]
    others = [strength for strength in STRENGTHS if strength != 1]
    fewer = sampled(text.shape[1], len(text) * len(others)).reshape(len(text), len(others), -1)
    for client, model in enumerate(trained.models):
        for strength, labels in zip(others, fewer[client], strict=True):
            names = [trained.class_names[label] for label in labels]
            texts = class_texts(trained.backbone, names, trained.prompt)
            wanted = model.at(strength).encode_text(trained.backbone, texts).float().cpu().numpy()
            rows, amount = np.full(len(labels), client), np.full(len(labels), strength, np.float32)
            found = run_clients(session, tokens[0][labels].cpu().numpy(), rows, amount)
            errors.append(largest_difference(found, wanted))
    return float(np.max(errors))


@torch.inference_mode()
def _encode_images(
    backbone: Backbone, images: NDArray[np.uint8], model: Adapter, strengths: Features
) -> Features:
    """Features [N, D] by torch, each image at its own strength."""
    features = np.empty((len(images), backbone.embed_dim), np.float32)
    for strength in np.unique(strengths):
        (rows,) = np.nonzero(strengths == strength)
        dialled = model.at(float(strength))
        for start in range(0, len(rows), BATCH):
            chunk = rows[start : start + BATCH]
            found = dialled.encode_image(backbone, torch.from_numpy(images[chunk]))
            features[chunk] = found.float().cpu().numpy()
    return features


def _open(file: Path, manifest: Manifest) -> onnxruntime.InferenceSession:
    """A session for one of the models, its structure and signature found right."""
    signature = SIGNATURES[file.name]
    axis, size = signature.axis, manifest.preprocessing.image_size
    items: tuple[str, list[int | str]] = "tensor(uint8)", [axis, size, size, 3]
    if file.name == TEXT_MODEL:
        items = "tensor(int64)", [axis, manifest.context_length]
    classifies = file.name == CLASSIFIER_MODEL
    width = len(manifest.class_names) if classifies else manifest.embed_dim
    outputs: dict[str, tuple[str, list[int | str]]]
    outputs = {signature.output: ("tensor(float)", [axis, width])}
    if classifies and manifest.general_words:
        outputs |= {"known": ("tensor(float)", [axis]), "unknown": ("tensor(bool)", [axis])}
    return check_model(
        file,
        {
            signature.items: items,
            CLIENT_INPUT: ("tensor(int64)", [axis]),
            STRENGTH_INPUT: ("tensor(float)", [axis]),
        },
        outputs,
    )
