"""Is a model in reduced precision good enough? Its decisions on real images, before and after.

Parity in fp32 has been shown already; what counts for fp16 and int8 is whether the answers stay:
cosine with the fp32 features, class scores, chosen classes, accuracy on local, base and novel.
Text features are the reduced text tower's own, as for classes typed at run time; the stored ones of
the known classes are fp32, so plain prediction is no worse than what is measured here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pfedmma_deploy.errors import DeviceError, ExportError
from pfedmma_deploy.export.parity import run_clients, sampled
from pfedmma_deploy.runtime.bundle import TEXT_MODEL, VISION_MODEL
from pfedmma_deploy.runtime.manifest import ClientInfo, Manifest
from pfedmma_deploy.runtime.providers import open_session, resolve_device

Rows = NDArray[np.int64]
Features = NDArray[np.float32]
Towers = tuple[onnxruntime.InferenceSession, onnxruntime.InferenceSession]
FIGURES = ("zero_shot_base", "zero_shot_novel", "local", "base", "novel")
BUDGET = 1024
"""Images of each kind (base, novel, local) for zero-shot, and as many for all clients together,
each having its share of them."""


@dataclass(frozen=True)
class Evaluation:
    """Labelled real images on which a model is judged."""

    pixels: NDArray[np.uint8]
    """uint8 [N, H, W, 3] at the backbone's size."""
    labels: Rows
    """Label of every image, [N]."""
    base: Rows
    """Rows of the test images of base classes."""
    novel: Rows
    """Rows of the test images of novel classes; empty where there are none."""
    local: Mapping[str, Rows]
    """By client id: rows of its own test images."""


@dataclass(frozen=True)
class Quality:
    """What reduced precision changes; accuracies in percent, None where nothing is measured."""

    device: str
    """Where the reduced model was run."""
    images: int
    """(image, client) pairs compared."""
    mean_cosine: float
    least_cosine: float
    """Between an image's features in fp32 and in reduced precision."""
    least_text_cosine: float
    max_logit_difference: float
    """Of a class score: logit_scale times a cosine."""
    top1_agreement: float
    """Percent of the pairs for which the same of all class names is chosen."""
    before: Mapping[str, float | None]
    after: Mapping[str, float | None]
    """By `FIGURES`; those that are not zero-shot's are means over clients."""

    @property
    def accuracy_drop(self) -> float:
        """Points lost, of the figure that loses most; below 0 where all gain."""
        drops = []
        for name, old in self.before.items():
            new = self.after[name]
            if old is not None and new is not None:
                drops.append(old - new)
        return max(drops)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "accuracy_drop": self.accuracy_drop}

    def require(self, max_drop: float) -> None:
        """Raises `ExportError` with the figures where accuracy falls by more than `max_drop`."""
        # Written so that NaN does not pass.
        if self.accuracy_drop <= max_drop and self.least_cosine > -2:
            return
        figures = ", ".join(
            f"{name} {old:.1f} -> {self.after[name]:.1f} %"
            for name, old in self.before.items()
            if old is not None
        )
        raise ExportError(
            f"The model in reduced precision loses {self.accuracy_drop:.2f} points of accuracy "
            f"(accepted {max_drop:g}): {figures}; same class for {self.top1_agreement:.1f} % of "
            f"{self.images} images, least cosine {self.least_cosine:.4f}, largest difference of a "
            f"class score {self.max_logit_difference:.2f}. Nothing was written: export with "
            "--precision fp32, or accept more with --max-accuracy-drop."
        )


def measure_quality(
    exact: Path,
    reduced: Path,
    manifest: Manifest,
    tokens: Sequence[NDArray[np.int64]],
    images: Evaluation,
) -> Quality:
    """Compare the two towers in folder `reduced` with those in `exact`.

    Args:
        exact: folder of the fp32 models, found equal to the trained one.
        reduced: folder of the models to judge. They run on CUDA where it works, else on the CPU.
        manifest: clients, labels and logit scale.
        tokens: token ids of the class prompts by client index, [C, context] each.
        images: what to judge on.
    """
    before, _ = _open_towers(exact, "cpu")
    after, device = _open_towers(reduced, "auto")
    cosines, text_cosines, agree, differences = [], [], [], []
    accuracy: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in FIGURES}
    for client in manifest.clients:
        kinds = _rows_of(images, client, len(manifest.clients))
        rows = np.unique(np.concatenate(list(kinds.values())))
        own = tokens[client.index]
        old = _features(before, images.pixels[rows], own, client.index)
        new = _features(after, images.pixels[rows], own, client.index)
        cosines.append((old[0] * new[0]).sum(1))
        text_cosines.append((old[1] * new[1]).sum(1))
        left, right = old[0] @ old[1].T, new[0] @ new[1].T
        agree.append(left.argmax(1) == right.argmax(1))
        differences.append(manifest.logit_scale * np.abs(left - right).max())
        for name, chosen in kinds.items():
            of = np.searchsorted(rows, chosen)
            known = np.array(manifest.novel if name == "novel" else manifest.base)
            figure = name if client.index else f"zero_shot_{name}"
            for side, scores in enumerate((left, right)):
                answers = known[scores[np.ix_(of, known)].argmax(1)]
                hits = float((answers == images.labels[chosen]).mean() * 100)
                accuracy[figure][side].append(hits)
    all_cosines = np.concatenate(cosines)
    return Quality(
        device=device,
        images=len(all_cosines),
        mean_cosine=float(all_cosines.mean()),
        least_cosine=float(all_cosines.min()),
        least_text_cosine=float(np.concatenate(text_cosines).min()),
        # numpy's max, because Python's may drop a NaN.
        max_logit_difference=float(np.max(differences)),
        top1_agreement=float(np.concatenate(agree).mean() * 100),
        before={k: float(np.mean(v[0])) if v[0] else None for k, v in accuracy.items()},
        after={k: float(np.mean(v[1])) if v[1] else None for k, v in accuracy.items()},
    )


def _open_towers(folder: Path, device: str) -> tuple[Towers, str]:
    """Both towers of a folder, that of images first, and where they run."""
    where, _ = resolve_device(device)
    try:
        vision = open_session(folder / VISION_MODEL, where)
    except DeviceError:
        where = "cpu"
        vision = open_session(folder / VISION_MODEL, where)
    return (vision, open_session(folder / TEXT_MODEL, where)), where


def _features(
    towers: Towers, pixels: NDArray[np.uint8], tokens: NDArray[np.int64], client: int
) -> tuple[Features, Features]:
    """Features of images [N, D] and of texts [C, D] by one client's model."""
    image = run_clients(towers[0], pixels, np.full(len(pixels), client))
    return image, run_clients(towers[1], tokens, np.full(len(tokens), client))


def _rows_of(images: Evaluation, client: ClientInfo, count: int) -> dict[str, Rows]:
    """The rows that a client is judged on: base, novel and its own, those that there are."""
    kinds = {"base": images.base, "novel": images.novel}
    if client.index:
        kinds["local"] = images.local.get(client.id, images.base[:0])
    sharing, place = (count - 1, client.index - 1) if client.index else (1, 0)
    found = {}
    for name, rows in kinds.items():
        if len(rows):
            # Test images are ordered by class: unshuffled, a share would be one or two classes.
            mixed = np.random.default_rng(0).permutation(rows)
            found[name] = mixed[sampled(len(rows), sharing, BUDGET)[place]]
    return found
