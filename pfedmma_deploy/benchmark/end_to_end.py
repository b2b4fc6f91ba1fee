"""From JPEG files to labels: decoding, resizing and the model together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pfedmma_deploy.benchmark.photos import write_photos
from pfedmma_deploy.benchmark.rate import Setting
from pfedmma_deploy.benchmark.rows import Row, timed
from pfedmma_deploy.benchmark.subjects import open_tuned, plain_file, plain_tower
from pfedmma_deploy.benchmark.timing import Contestant, run_rounds
from pfedmma_deploy.progress import Progress
from pfedmma_deploy.runtime import Classifier

if TYPE_CHECKING:
    from pfedmma_deploy.backbone.clip import Backbone

__all__ = ["measure_end_to_end"]

FEWEST, MOST = 8, 256
"""Photographs per call."""
PEER = "torch eager fp32"


def measure_end_to_end(
    classifiers: Sequence[Classifier],
    backbone: Backbone,
    folder: Path,
    batch: int,
    rate: float,
    setting: Setting,
    progress: Progress,
) -> Iterator[Row]:
    """Rows of `Classifier.predict` beside the usual loops with torch and with ONNX Runtime.

    Args:
        classifiers: of one backbone; each predicts for all its clients in turn.
        backbone: the peers' model.
        folder: for photographs and the peers' ONNX file.
        batch: images per call of a model.
        rate: images per second that are roughly expected, by which the number of files is chosen.
        setting: how rates are taken.
        progress: is told of the windows.
    """
    count = int(min(max(rate * setting.seconds, FEWEST), MOST))
    photos = write_photos(folder / "photos", count)
    rows = {PEER: Row("end-to-end", setting.backbone, PEER, "fp32", batch_size=batch)}
    contestants = [Contestant(PEER, _torch_loop(backbone, photos, batch, setting), count)]
    name = "onnxruntime fp32"
    rows[name] = Row("end-to-end", setting.backbone, name, "fp32", batch_size=batch)
    contestants.append(
        Contestant(name, _onnx_loop(backbone, folder, photos, batch, setting), count)
    )
    for classifier in classifiers:
        manifest = classifier.manifest
        name, clients = f"pfedmma {manifest.precision}", len(manifest.clients) - 1
        rows[name] = Row(
            "end-to-end",
            setting.backbone,
            name,
            manifest.precision,
            manifest.flavour,
            clients,
            batch,
        )
        contestants.append(Contestant(name, _predicting(classifier, photos, batch), count))
    windows = run_rounds(
        contestants,
        setting.rounds,
        setting.seconds,
        progress=progress,
        label=f"{setting.backbone}: windows of {count} files",
    )
    for name, row in rows.items():
        yield row.with_rates(timed(windows, name, PEER))


def _predicting(classifier: Classifier, photos: Sequence[str], batch: int) -> Callable[[], object]:
    clients = list(islice(cycle(range(1, len(classifier.clients))), len(photos)))
    return lambda: classifier.predict(photos, client=clients, batch_size=batch)


def _torch_loop(
    backbone: Backbone, photos: Sequence[str], batch: int, setting: Setting
) -> Callable[[], object]:
    """As open_clip's README does it: its transform, `encode_image`, the most similar text."""
    tower, text = plain_tower(backbone, setting.device), _text(backbone)

    def encode(pixels: Tensor) -> Any:
        with torch.inference_mode():
            return tower(pixels.to(setting.device)).cpu().numpy()

    return lambda: _classify(backbone, photos, batch, text, encode)


def _onnx_loop(
    backbone: Backbone, folder: Path, photos: Sequence[str], batch: int, setting: Setting
) -> Callable[[], object]:
    """The same with the plain tower in ONNX Runtime."""
    session = open_tuned(plain_file(backbone, folder), setting.device, setting.threads)
    text = _text(backbone)

    def encode(pixels: Tensor) -> Any:
        return session.run(None, {"pixel_values": pixels.numpy()})[0]

    return lambda: _classify(backbone, photos, batch, text, encode)


def _classify(
    backbone: Backbone,
    photos: Sequence[str],
    batch: int,
    text: Any,
    encode: Callable[[Tensor], Any],
) -> list[int]:
    import open_clip

    transform = open_clip.image_transform(
        backbone.image_size,
        is_train=False,
        mean=backbone.mean,
        std=backbone.std,
        resize_mode=backbone.resize_mode,
        interpolation=backbone.interpolation,
    )
    found: list[int] = []
    for start in range(0, len(photos), batch):
        images = [transform(Image.open(path)) for path in photos[start : start + batch]]
        features = encode(torch.stack(images))
        found.extend((features @ text).argmax(axis=1).tolist())
    return found


def _text(backbone: Backbone) -> Any:
    """Text features of as many classes as the bundles have, [D, C]."""
    return np.random.default_rng(0).standard_normal((backbone.embed_dim, 10), np.float32)
