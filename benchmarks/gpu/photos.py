"""From JPEG files to the model's answer: Pillow in threads beside the card's own decoder.

Decoding is likely what holds a GPU up. Each way is measured by itself (files to pixels) and with
the model behind it: `Classifier.predict`, whose threads decode while the model computes, and the
card's decoder, one batch after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from benchmarks.gpu.inference import make_bundle, open_bench
from benchmarks.gpu.plan import Plan, Reporter
from pfedmma_deploy.benchmark import subjects
from pfedmma_deploy.benchmark.load import spread_clients
from pfedmma_deploy.benchmark.report import Contestant, Row, run_rounds, timed
from pfedmma_deploy.benchmark.subjects import Device
from pfedmma_deploy.runtime.bundle import VISION_MODEL, Bundle
from pfedmma_deploy.runtime.image_tower import OUTPUT
from pfedmma_deploy.runtime.manifest import Preprocessing
from pfedmma_deploy.runtime.sources import load_pixels

PILLOW = "Pillow, threads"
PEER = f"{PILLOW}: files to labels"


def photos(plan: Plan, scratch: Path, report: Reporter) -> None:
    """All ways in turns, over the same files."""
    bench = open_bench(plan, plan.backbones[0], scratch)
    bundle, threads = make_bundle(bench, plan.forms[0]), bench.options.threads
    files = subjects.write_photos(scratch / "photos", plan.photos)
    settings = bundle.manifest.preprocessing
    tower = DeviceTower(bundle, plan.device, threads)
    own = subjects.bundle_photos(bundle, files, plan.device, threads)
    decoder = f"torchvision, {plan.device}"

    def decode() -> None:
        for _ in decoded(files, settings, plan.device, plan.photo_batch):
            _wait(plan.device)

    def features() -> None:
        for pixels in decoded(files, settings, plan.device, plan.photo_batch):
            tower(pixels)

    with ThreadPoolExecutor(threads) as readers:

        def pillow() -> None:
            for _ in readers.map(lambda file: load_pixels(file, settings), files):
                pass

        ways: dict[str, Callable[[], object]] = {
            f"{PILLOW}: files to pixels": pillow,
            f"{decoder}: files to pixels": decode,
            PEER: own.prepare(plan.photo_batch),
            f"{decoder}: files to features": features,
        }
        contestants: dict[str, Contestant] = {name: (w, len(files)) for name, w in ways.items()}
        windows = run_rounds(contestants, plan.rounds, plan.seconds)
    difference = pixel_difference(files[0], settings, plan.device)
    for name in ways:
        row: Row = {"measure": "photos", "name": name, "batch_size": plan.photo_batch}
        row |= timed(windows, name, PEER)
        report(row if name.startswith(PILLOW) else row | {"difference": difference})


def decoded(
    files: Sequence[str], settings: Preprocessing, device: Device, batch: int
) -> Iterator[Tensor]:
    """Batches of pixels uint8 [B, S, S, 3] on the device, decoded and resized there."""
    order = iter(files)
    while some := list(islice(order, batch)):
        data = []
        for file in some:
            # torch wants memory that may be written to.
            content = bytearray(Path(file).read_bytes())
            data.append(torch.frombuffer(content, dtype=torch.uint8))
        images = decode_jpeg(data, ImageReadMode.RGB, device)
        yield torch.stack([resized(image, settings.image_size) for image in images])


def resized(image: Tensor, size: int) -> Tensor:
    """The shorter edge scaled to `size` and the centre cut out: [3, H, W] -> [S, S, 3], uint8."""
    scaled = transforms.resize(
        image, [size], interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    cropped: Tensor = transforms.center_crop(scaled, [size, size])
    return cropped.permute(1, 2, 0)


def pixel_difference(file: str, settings: Preprocessing, device: Device) -> float:
    """Mean distance of a pixel value, 0 to 255, from what Pillow makes of the same file."""
    (found,) = decoded([file], settings, device, 1)
    wanted = load_pixels(file, settings).astype(np.float64)
    return float(np.abs(found[0].cpu().numpy().astype(np.float64) - wanted).mean())


class DeviceTower:
    """The image tower of a bundle, over pixels that lie on the device already."""

    def __init__(self, bundle: Bundle, device: Device, threads: int) -> None:
        self.session = subjects.open_tuned(bundle.file(VISION_MODEL), device, threads)
        self.device = device
        self.clients = len(bundle.manifest.clients) - 1

    def __call__(self, pixels: Tensor) -> NDArray[np.float32]:
        """Features [B, D] of uint8 pixels [B, S, S, 3], clients mixed."""
        pixels = pixels.contiguous()
        batch, shape = len(pixels), tuple(pixels.shape)
        binding = self.session.io_binding()
        # ONNX Runtime computes in a stream of its own: the pixels must be there.
        _wait(self.device)
        place = (self.device, 0, np.uint8, shape, pixels.data_ptr())
        binding.bind_input("pixel_values", *place)
        clients = np.array(spread_clients(batch, self.clients), np.int64)
        binding.bind_cpu_input("client", clients)
        binding.bind_cpu_input("strength", np.ones(batch, np.float32))
        binding.bind_output(OUTPUT)
        self.session.run_with_iobinding(binding)
        features: NDArray[np.float32] = binding.copy_outputs_to_cpu()[0]
        return features


def _wait(device: Device) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
