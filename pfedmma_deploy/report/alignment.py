"""Whether a shared part brings the two modalities together, and what it is worth in accuracy.

Each model is measured four times: as it is, and with its shared parameters (pFedMMA's projections)
set to zero, to the common initial state of round 0, and to another client's. The last is measured
only where clients hold a copy of their own; else all have the server's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfedmma_deploy.adapters.base import Adapter, Frozen
from pfedmma_deploy.backbone.activation_cache import ImageInputs
from pfedmma_deploy.backbone.blocks import run_block
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.evaluation.accuracy import Accuracy, Scorer, mean_accuracy
from pfedmma_deploy.federated.evaluate import RunEvaluation, open_scorer
from pfedmma_deploy.federated.session import Session
from pfedmma_deploy.progress import Progress
from pfedmma_deploy.report.measures import (
    Array,
    linear_cka,
    mean_of,
    modality_gap,
    pair_cosines,
    principal_plane,
    spread_out,
)
from pfedmma_deploy.types import TOWERS, Example, Scope, Tower

MOST_IMAGES = 256
"""Test images that features are measured on."""
MOST_CLIENTS = 10
"""Clients that are measured, evenly spaced in client order."""
MOST_CLASSES = 10
"""Classes in the picture, evenly spaced in class order."""
FEATURES = ("gap", "matching", "other", "margin")
Features = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One client's model in one variant."""

    client: str
    accuracy: Accuracy
    features: Features | None


class BlockRecorder:
    """A backbone that keeps what every block gives: class tokens of images, end tokens of texts.

    `backbone` computes as the original does; `read` takes what was kept since the last `read`.
    """

    def __init__(self, backbone: Backbone) -> None:
        # With token shortcuts the last block of each tower says which token is read.
        self.backbone = replace(backbone, run_block=self._run, token_shortcuts=True)
        self._images: dict[int, list[Tensor]] = {}
        self._texts: dict[int, Tensor] = {}
        self._ends: Tensor | None = None

    def _run(self, block: Any, x: Tensor, mask: Any, hook: Any, *rest: Any) -> Tensor:
        out = run_block(block, x, mask, hook, *rest)
        tower, index, _, read, _ = rest
        if tower == "image":
            self._images.setdefault(index, []).append(out[:, 0].double().cpu())
        else:
            self._texts[index], self._ends = out, read
        return out

    def read(self) -> dict[Tower, dict[int, Array]]:
        """By tower and block: [N, d] of the images, [C, d] of the texts that were read last."""
        images = {index: torch.cat(rows).numpy() for index, rows in self._images.items()}
        texts: dict[int, Array] = {}
        for index, out in self._texts.items():
            # The last block gives the end token alone.
            places = torch.zeros(len(out), dtype=torch.long)
            if out.shape[1] > 1 and self._ends is not None:
                places = self._ends.cpu()
            texts[index] = out.cpu()[torch.arange(len(out)), places].double().numpy()
        self._images, self._texts, self._ends = {}, {}, None
        return {"image": images, "text": texts}


class Alignment:
    """Measures the features of models on the same test images.

    Args:
        session: the run's.
    """

    def __init__(self, session: Session) -> None:
        federation = session.federation
        self.session = session
        self.recorder = BlockRecorder(session.backbone)
        self.images: list[Example] = spread_out(
            [*federation.base_test, *federation.novel_test], MOST_IMAGES
        )
        self.scorer = self._scorer(session.images)
        self.labels = self.scorer.every_label
        self.rows = np.array([self.labels.index(example.label) for example in self.images])
        self._encode(self._scorer(ImageInputs(session.pixels)), Frozen())
        self._frozen = self.recorder.read()

    def _scorer(self, images: ImageInputs) -> Scorer:
        session = self.session
        return Scorer(
            self.recorder.backbone,
            session.federation,
            images,
            session.config.prompt,
            session.logit_scale,
        )

    @torch.inference_mode()
    def _encode(self, scorer: Scorer, adapter: Adapter) -> tuple[Tensor, Tensor]:
        images = torch.cat(list(scorer.encode_images(adapter, self.images)))
        return images, scorer.encode_texts(adapter, self.labels)

    def measure(self, adapter: Adapter) -> tuple[Features | None, Array | None, Array | None]:
        """Figures of a model, its image features [N, D] and its text features [C, D].

        All None where its class scores are not the cosine of two features.
        """
        found, texts = self._encode(self.scorer, adapter)
        kept = self.recorder.read()
        # What lies below the first block that the adapter takes part in is cached: the frozen ones.
        blocks = {tower: {**self._frozen[tower], **kept[tower]} for tower in TOWERS}
        if found.ndim != 2 or texts.ndim != 2:
            return None, None, None
        images, names = found.double().cpu().numpy(), texts.double().cpu().numpy()
        matching, other = pair_cosines(images, names, self.rows)
        figures: Features = {
            "gap": modality_gap(images, names),
            "matching": matching,
            "other": other,
            "margin": None if other is None else matching - other,
            "cka": self._cka(blocks),
        }
        return figures, images, names

    def _cka(self, blocks: Mapping[Tower, Mapping[int, Array]]) -> list[float | None]:
        """Linear CKA of the towers in every pair of blocks, the last paired with the last.

        Each image is paired with the text of its class; None where a block has not one token for
        each of them.
        """
        backbone = self.session.backbone
        depths = backbone.depth("image"), backbone.depth("text")
        wanted = len(self.images), len(self.labels)
        found: list[float | None] = []
        for place in range(min(depths), 0, -1):
            image = blocks["image"].get(depths[0] - place)
            text = blocks["text"].get(depths[1] - place)
            if image is None or text is None or (len(image), len(text)) != wanted:
                found.append(None)
            else:
                found.append(linear_cka(image, text[self.rows]))
        return found


def measure_alignment(
    session: Session,
    load: Callable[[str], Adapter],
    measured: RunEvaluation,
    progress: Progress,
) -> dict[str, Any]:
    """The section on alignment.

    Args:
        session: the run's.
        load: puts a client's own model into the one adapter that it always returns.
        measured: the clients' accuracies, measured already.
        progress: told of the clients.

    Returns:
        JSON-ready. `variants`: `zero_shot`, `own` and what was done to the shared part, each with
        the number of `clients` and their means of `accuracy` (percent), `points` (change against
        their own models) and `features`; `picture`: coordinates of features of the first client.
    """
    alignment, scorer = Alignment(session), open_scorer(session)
    clients = spread_out(session.federation.clients, MOST_CLIENTS)
    start = session.build_adapter().tensors(Scope.SHARED)
    plain, *before = alignment.measure(Frozen())
    rows: dict[str, list[Row]] = {
        "zero_shot": [Row(c.id, measured.zero_shot[c.id], plain) for c in clients]
    }
    picture = None
    for number, client in enumerate(progress.track(clients, "clients ablated", len(clients))):
        other = load(clients[number - 1].id).tensors(Scope.SHARED)
        adapter = load(client.id)
        own = adapter.tensors()
        for name, changed in _variants(own, start, other).items():
            adapter.load({**own, **changed})
            features, *after = alignment.measure(adapter)
            if name == "own":
                accuracy = measured.personalized[client.id]
                picture = picture or _picture(alignment, client.id, before, after)
            else:
                (accuracy,) = scorer.score(adapter, [client])
            rows.setdefault(name, []).append(Row(client.id, accuracy, features))
    return {
        "shared": session.method.shared,
        "adapts": sorted(session.build_adapter().adapts),
        "clients": [client.id for client in clients],
        "images": len(alignment.images),
        "variants": {name: _means(found, measured) for name, found in rows.items()},
        "picture": picture,
    }


def _variants(
    own: Mapping[str, Tensor], start: Mapping[str, Tensor], other: Mapping[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """What takes the place of the shared parameters, by name of the variant."""
    found: dict[str, dict[str, Tensor]] = {"own": {}}
    if start:
        found["zeroed"] = {name: torch.zeros_like(value) for name, value in start.items()}
        found["initial"] = dict(start)
        if any(not torch.equal(own[name], value) for name, value in other.items()):
            found["another"] = dict(other)
    return found


def _means(rows: Sequence[Row], measured: RunEvaluation) -> dict[str, Any]:
    """Means of one variant over the clients that it was measured on."""
    changes: dict[str, list[float]] = {}
    for row in rows:
        own = measured.personalized[row.client].to_dict()
        for key, value in row.accuracy.to_dict().items():
            reference = own[key]
            if value is not None and reference is not None:
                changes.setdefault(key, []).append(value - reference)
    accuracy = mean_accuracy(row.accuracy for row in rows).to_dict()
    return {
        "accuracy": accuracy,
        "points": {key: mean_of(changes.get(key, ())) for key in accuracy},
        "features": _mean_features([row.features for row in rows]),
        "clients": len(rows),
    }


def _mean_features(measured: Sequence[Features | None]) -> Features | None:
    """Means over clients; None where the method has no such features."""
    known = [one for one in measured if one is not None]
    if not known:
        return None
    means: Features = {key: mean_of([one[key] for one in known]) for key in FEATURES}
    means["cka"] = [mean_of(block) for block in zip(*(one["cka"] for one in known), strict=True)]
    return means


def _picture(
    alignment: Alignment, client: str, *states: Sequence[Array | None]
) -> dict[str, Any] | None:
    """Image and text features before and after in one plane: that of all of them together."""
    chosen = spread_out(range(len(alignment.labels)), MOST_CLASSES)
    is_shown = np.isin(alignment.rows, chosen)
    parts: list[Array] = []
    for images, texts in states:
        if images is None or texts is None:
            return None
        parts += [images[is_shown], texts[chosen]]
    plane = principal_plane(np.concatenate(parts))
    ends = np.cumsum([len(part) for part in parts])[:-1]
    placed = [part.round(4).tolist() for part in np.split(plane, ends)]
    return {
        "client": client,
        "classes": alignment.session.federation.names([alignment.labels[i] for i in chosen]),
        "labels": [chosen.index(row) for row in alignment.rows[is_shown]],
        "before": {"images": placed[0], "texts": placed[1]},
        "after": {"images": placed[2], "texts": placed[3]},
    }
