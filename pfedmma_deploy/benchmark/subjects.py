"""What is measured: exported models, plain ONNX Runtime and torch as it comes.

A subject is one model under measurement: on the device alone, or, in the functions that end in
`_photos`, from JPEG files to labels.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.benchmark.load import Call, spread_clients
from pfedmma_deploy.benchmark.report import Row
from pfedmma_deploy.data.samples import load_sample
from pfedmma_deploy.export.onnx_file import to_bytes, to_onnx
from pfedmma_deploy.runtime import Classifier
from pfedmma_deploy.runtime.bundle import VISION_MODEL, Bundle
from pfedmma_deploy.runtime.providers import model_inputs, open_session

Feed = Mapping[str, NDArray[Any]]
Device = Literal["cpu", "cuda"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SEED = 0
TURNS = 16
"""Batches of different clients that take turns, so that no client's weights stay in a cache."""
PHOTO_SIZE = (500, 375)
"""Width and height of ImageNet's typical photograph."""
GRAIN = 6.0
"""Deviation of the noise that makes an enlarged image as large a file as a photograph."""


@dataclass(frozen=True)
class Subject:
    """A model under measurement."""

    about: Row
    """Its `name` and `precision`; of a bundle also `flavour` and `clients`, the number of clients
    in the file, which every batch mixes."""
    prepare: Callable[[int], Call]
    """Batch size -> one call: a batch of as many images, or photographs in batches of that size. It
    returns when the features are there."""

    @property
    def label(self) -> str:
        """Its name among others: `pfedmma int8, 100 clients`."""
        clients = self.about.get("clients")
        return f"{self.about['name']}" + ("" if clients is None else f", {clients} clients")


def describe(bundle: Bundle) -> Row:
    """What a row says of a bundle."""
    manifest = bundle.manifest
    return {
        "name": f"pfedmma {manifest.precision}",
        "precision": manifest.precision,
        "flavour": manifest.flavour,
        "clients": len(manifest.clients) - 1,
    }


class PlainImageTower(nn.Module):
    """open_clip's own image tower: normalised pixels [B, 3, H, W] -> features [B, D] of norm 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        features: Tensor = self.model.encode_image(pixel_values, normalize=True)  # type: ignore[operator]
        return features


def exported(bundle: Bundle, device: Device, threads: int) -> Subject:
    """The image tower of a bundle, uint8 in, its clients mixed in every batch."""
    return in_session(bundle, open_tuned(bundle.file(VISION_MODEL), device, threads), device)


def in_session(bundle: Bundle, session: onnxruntime.InferenceSession, device: Device) -> Subject:
    """The same in a session that is open already; `device` is where its inputs lie."""

    def prepare(batch: int) -> Call:
        return _run(session, mixed_feeds(bundle, session, batch), device)

    return Subject(describe(bundle), prepare)


def mixed_feeds(
    bundle: Bundle, session: onnxruntime.InferenceSession, batch: int
) -> list[dict[str, NDArray[Any]]]:
    """`TURNS` inputs of `batch` images of noise, in each of which other clients are mixed."""
    size, clients = bundle.manifest.preprocessing.image_size, len(bundle.manifest.clients) - 1
    rng = np.random.default_rng(SEED)
    pixels = rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    feeds, strengths = [], np.ones(batch, np.float32)
    for turn in range(TURNS):
        mixed = 1 + (np.array(spread_clients(batch, clients)) - 1 + turn) % clients
        feeds.append(model_inputs(session, pixels, mixed, strengths))
    return feeds


def plain_onnx(
    backbone: Backbone, folder: Path, device: Device, threads: int, precision: str = "fp32"
) -> Subject:
    """The unadapted tower in ONNX Runtime, fp32 or fp16 pixels in, normalised already."""
    session = open_tuned(plain_file(backbone, folder, precision), device, threads)

    def prepare(batch: int) -> Call:
        pixels = _pixels(backbone, batch, "cpu", precision).numpy()
        return _run(session, [{"pixel_values": pixels}], device)

    return Subject({"name": f"onnxruntime {precision}", "precision": precision}, prepare)


def plain_file(backbone: Backbone, folder: Path, precision: str = "fp32") -> Path:
    """open_clip's tower through torch's exporter as anybody would, written once."""
    file = folder / f"plain-{precision}.onnx"
    if not file.exists():
        example = {"pixel_values": _pixels(backbone, 2, "cpu", precision)}
        model = to_onnx(plain_tower(backbone, "cpu", precision), example, "image_embeds", "batch")
        file.write_bytes(to_bytes(model, {}))
    return file


def eager_torch(backbone: Backbone, device: Device, precision: str = "fp32") -> Subject:
    """open_clip's `encode_image`, called as its README does."""
    tower = plain_tower(backbone, device, precision)
    return run_torch(f"torch eager {precision}", tower, backbone, device, precision)


def run_torch(
    name: str,
    tower: Callable[[Tensor], Tensor],
    backbone: Backbone,
    device: Device,
    precision: str,
) -> Subject:
    """A function of pixels [B, 3, H, W] as a subject."""

    def prepare(batch: int) -> Call:
        pixels = _pixels(backbone, batch, device, precision)

        def call() -> None:
            with torch.inference_mode():
                tower(pixels)
            if pixels.is_cuda:
                torch.cuda.synchronize()

        return call

    return Subject({"name": name, "precision": precision}, prepare)


def plain_tower(backbone: Backbone, device: Device, precision: str = "fp32") -> PlainImageTower:
    """open_clip's image tower on `device`; the backbone itself stays as it is."""
    model: nn.Module = backbone.model
    # A copy only where it must differ: two of a large CLIP may not fit beside each other.
    if precision != "fp32" or backbone.device.type != device:
        model = copy.deepcopy(model).to(device, DTYPES[precision])
    return PlainImageTower(model).eval()


def _pixels(backbone: Backbone, batch: int, device: Device, precision: str) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    size = backbone.image_size
    pixels = torch.randn(batch, 3, size, size, generator=generator)
    return pixels.to(device, DTYPES[precision])


def open_tuned(file: Path, device: Device, threads: int) -> onnxruntime.InferenceSession:
    """A session that computes with so many threads on the CPU, or really on the GPU."""
    if device == "cuda":
        return open_session(file, device)
    # Not `open_session`, whose threads sleep while they wait: peers get ONNX Runtime's defaults.
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, feeds: Sequence[Feed], device: Device) -> Call:
    """One call of a session, with the feeds in turn.

    On a GPU inputs and output stay there, and the end is waited for.
    """
    if device == "cpu":
        turns = itertools.cycle(feeds)
        return lambda: session.run(None, next(turns))
    bindings = itertools.cycle([bound(session, feed, device) for feed in feeds])

    def call() -> None:
        binding = next(bindings)
        # Kernels are queued: without waiting, the time that queueing takes would be measured.
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return call


def bound(session: onnxruntime.InferenceSession, feed: Feed, device: Device) -> Any:
    """An IO binding: inputs copied to the device beforehand, the output left there."""
    binding = session.io_binding()
    for name, values in feed.items():
        value = onnxruntime.OrtValue.ortvalue_from_numpy(values, device, 0)
        binding.bind_ortvalue_input(name, value)
    binding.bind_output(session.get_outputs()[0].name, device, 0)
    return binding


def bundle_photos(bundle: Bundle, photos: Sequence[str], device: Device, threads: int) -> Subject:
    """`Classifier.predict` of photographs, for all clients in turn."""
    classifier = Classifier(bundle, device, threads)
    clients = [1 + place % (len(classifier.clients) - 1) for place in range(len(photos))]

    def prepare(batch: int) -> Call:
        return lambda: classifier.predict(photos, client=clients, batch_size=batch)

    return Subject(describe(bundle), prepare)


def torch_photos(backbone: Backbone, photos: Sequence[str], device: Device) -> Subject:
    """As open_clip's README does it: its transform, `encode_image`, the most similar text."""
    tower = plain_tower(backbone, device)

    @torch.inference_mode()
    def encode(pixels: Tensor) -> Any:
        return tower(pixels.to(device)).cpu().numpy()

    return _through_transform("torch eager fp32", backbone, photos, encode)


def onnx_photos(
    backbone: Backbone, folder: Path, photos: Sequence[str], device: Device, threads: int
) -> Subject:
    """The same with the plain tower in ONNX Runtime."""
    session = open_tuned(plain_file(backbone, folder), device, threads)

    def encode(pixels: Tensor) -> Any:
        return session.run(None, {"pixel_values": pixels.numpy()})[0]

    return _through_transform("onnxruntime fp32", backbone, photos, encode)


def _through_transform(
    name: str,
    backbone: Backbone,
    photos: Sequence[str],
    encode: Callable[[Tensor], Any],
) -> Subject:
    """Labels of photographs, image by image through open_clip's transform."""
    transform = open_clip.image_transform(
        backbone.image_size,
        is_train=False,
        mean=backbone.mean,
        std=backbone.std,
        resize_mode=backbone.resize_mode,
        interpolation=backbone.interpolation,
    )
    # As many classes as the bundles have, [D, 10].
    text = np.random.default_rng(SEED).standard_normal((backbone.embed_dim, 10), np.float32)

    def prepare(batch: int) -> Call:
        def classify() -> list[int]:
            found: list[int] = []
            for start in range(0, len(photos), batch):
                images = [transform(Image.open(path)) for path in photos[start : start + batch]]
                features = encode(torch.stack(images))
                found.extend((features @ text).argmax(axis=1).tolist())
            return found

        return classify

    return Subject({"name": name, "precision": "fp32"}, prepare)


def write_photos(folder: Path, count: int) -> list[str]:
    """Write `count` JPEG files of a photograph's size, made of an embedded sample's images."""
    sample = load_sample("domains-sample")
    rng = np.random.default_rng(SEED)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for place in range(count):
        example = sample.examples[place * 7 % len(sample.examples)]
        enlarged = sample.open_image(example).resize(PHOTO_SIZE, Image.Resampling.BICUBIC)
        grain = rng.normal(0, GRAIN, (PHOTO_SIZE[1], PHOTO_SIZE[0], 3))
        pixels = np.clip(np.asarray(enlarged) + grain, 0, 255).astype(np.uint8)
        path = folder / f"{place:04d}.jpg"
        Image.fromarray(pixels).save(path, quality=90)
        paths.append(str(path))
    return paths
