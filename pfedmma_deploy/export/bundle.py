"""A backbone and its clients' adapters become a verified bundle, `exports/<name>/`."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.export import describe
from pfedmma_deploy.export.banks import ExportClient, require_names, require_strength
from pfedmma_deploy.export.certainty import Calibrations
from pfedmma_deploy.export.export_config import ExportConfig
from pfedmma_deploy.export.graph import ClassifierGraph
from pfedmma_deploy.export.models import (
    build_graphs,
    portable_model,
    require_flavour,
    write_fp32,
    write_reduced,
)
from pfedmma_deploy.export.parity import Parity, Trained, trained_side, verify_models
from pfedmma_deploy.export.publish import require_replaceable, seal, staged, write_features
from pfedmma_deploy.export.quality import Evaluation, Quality, measure_quality
from pfedmma_deploy.export.tokenizer import require_clip_tokenizer, write_tokenizer
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.runtime import bundle as names
from pfedmma_deploy.runtime.manifest import History, Manifest
from pfedmma_deploy.store.files import write_bytes


@dataclass(frozen=True)
class ExportReport:
    """What an export made, and how close it is to the trained model."""

    bundle: Path
    clients: tuple[str, ...]
    """Ids by index, zero-shot first."""
    files: dict[str, int]
    """Name -> bytes."""
    parity: Parity
    seconds: float
    quality: Quality | None = None
    """What reduced precision changes in decisions on real images."""

    def to_dict(self) -> dict[str, Any]:
        """The stable keys of `pfedmma export --json`."""
        quality = None if self.quality is None else self.quality.to_dict()
        plain = {"bundle": str(self.bundle), "clients": list(self.clients), "quality": quality}
        return {**asdict(self), **plain}


def export_bundle(
    backbone: Backbone,
    clients: Sequence[ExportClient],
    out: Path,
    *,
    class_names: Sequence[str],
    prompt: str,
    base: Sequence[int],
    novel: Sequence[int],
    method: str,
    parity_images: NDArray[np.uint8],
    provenance: Mapping[str, Any],
    logit_scale: float | None = None,
    classifier: bool = False,
    config: ExportConfig | None = None,
    evaluation: Evaluation | None = None,
    history: History | None = None,
    calibrations: Calibrations | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Write a bundle that serves `clients`, client index 0 being zero-shot CLIP.

    Args:
        backbone: the frozen CLIP that the adapters were trained on.
        clients: the rows 1, 2, ... of the banks.
        out: folder to make; an older bundle there is replaced once the new one is complete.
        class_names: all known classes in label order.
        prompt: contains `{}`, where the class name goes.
        base: labels that were trained on.
        novel: labels that were not.
        method: name of the method that trained the clients.
        parity_images: real images, uint8 [N, H, W, 3] at the backbone's size, on which the
            exported model is compared with torch.
        provenance: where the adapters come from; JSON-able, stored as it is.
        logit_scale: factor on the similarities; None takes the backbone's own.
        classifier: also write `classifier.onnx`, pixels to class scores in one file.
        config: operators, precision and storage; default fused for ONNX Runtime, fp32.
        evaluation: labelled images on which reduced precision is judged; it needs them.
        history: what the bundle shall remember of its training.
        calibrations: when the clients' answers can be believed; None leaves that out.
        progress: is told what is being done.

    Raises:
        ExportError: wrong input, a backbone that cannot be exported, `out` is something else than
            a bundle, the exported model differs from the trained one, or reduced precision costs
            more accuracy than it may. Nothing is left behind.
    """
    # What can be wrong with the arguments is said first: exporting takes minutes.
    started, report = time.perf_counter(), progress or Silent()
    config, factor = config or ExportConfig(), logit_scale or backbone.logit_scale
    _require_inputs(backbone, class_names, prompt, parity_images)
    if evaluation is None and not config.is_exact:
        raise ExportError(
            "Models in reduced precision are judged on labelled images before they are written: "
            "give `evaluation`, or export in fp32."
        )
    require_replaceable(out)
    require_names(clients)
    require_strength(clients)
    require_flavour(config, method, clients, backbone)
    graphs = build_graphs(clients, backbone)
    adapter = {"method": method, **clients[0].adapter.export_settings()}
    trained = trained_side(backbone, clients, adapter, class_names, prompt, parity_images)
    trained = replace(trained, logit_scale=factor, calibrations=calibrations)
    text, tokens = trained.text, trained.tokens[-1]
    if classifier:
        graphs[names.CLASSIFIER_MODEL] = ClassifierGraph(
            graphs[names.VISION_MODEL], torch.from_numpy(text), factor
        )
    manifest = describe.manifest(
        backbone,
        clients,
        class_names=class_names,
        prompt=prompt,
        base=base,
        novel=novel,
        provenance=provenance,
        history=history,
        calibrations=calibrations,
        logit_scale=factor,
        config=config,
        adapter=adapter,
    )
    quality = None
    with staged(Path(out)) as folder:
        for name, graph in report.track(graphs.items(), "models", len(graphs)):
            model = portable_model(name, graph, tokens, parity_images)
            write_fp32(folder, model, name, backbone, manifest, calibrations)
        # Reduced precision is judged against these files, so they are proved exact first.
        parity = verify_models(folder, trained, manifest)
        if evaluation is not None and not config.is_exact:
            parity, quality = _reduce(folder, config, manifest, trained, evaluation)
        manifest = replace(manifest, quality={} if quality is None else quality.to_dict())
        write_features(folder / names.TEXT_EMBEDS, trained.default_text)
        if calibrations is not None:
            calibrations.write(folder)
        write_tokenizer(folder / names.TOKENIZER, manifest.context_length)
        require_clip_tokenizer(backbone, folder / names.TOKENIZER)
        write_bytes(folder / names.LABELS, "".join(f"{n}\n" for n in class_names).encode())
        sizes = seal(folder, Path(out).name, manifest, asdict(parity))
    ids = tuple(client.id for client in manifest.clients)
    return ExportReport(Path(out), ids, sizes, parity, time.perf_counter() - started, quality)


def _reduce(
    folder: Path, config: ExportConfig, manifest: Manifest, trained: Trained, evaluation: Evaluation
) -> tuple[Parity, Quality]:
    """Bring the verified fp32 models of `folder` into reduced precision that is good enough."""
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        reduced = Path(inner)
        write_reduced(folder, reduced, config, manifest)
        parity = verify_models(reduced, trained, manifest, is_exact=False)
        tokens = [own.cpu().numpy() for own in trained.tokens]
        quality = measure_quality(folder, reduced, manifest, tokens, evaluation)
        quality.require(config.max_accuracy_drop)
        for file in reduced.iterdir():
            shutil.move(file, folder / file.name)
    return parity, quality


def _require_inputs(
    backbone: Backbone, class_names: Sequence[str], prompt: str, images: NDArray[np.uint8]
) -> None:
    if "{}" not in prompt:
        raise ExportError(f"The prompt {prompt!r} has no {{}} where the class name goes.")
    if not class_names or len(set(class_names)) < len(class_names):
        raise ExportError("Class names should be at least one, each once: rename the equal ones.")
    size = backbone.image_size
    if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3) or len(images) == 0:
        raise ExportError(
            f"The images to check the export on should be uint8 [N, {size}, {size}, 3], found "
            f"{images.dtype} {list(images.shape)}."
        )
