"""What is measured on the device alone: exported models, plain ONNX Runtime, torch as it comes."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pfedmma_deploy.backbone.flops import image_flop
from pfedmma_deploy.benchmark.cold import spread_clients
from pfedmma_deploy.export.onnx_file import to_bytes, to_onnx
from pfedmma_deploy.export.precision import quiet_libraries
from pfedmma_deploy.runtime.bundle import VISION_MODEL, Bundle
from pfedmma_deploy.runtime.providers import open_session

if TYPE_CHECKING:
    import onnxruntime

    from pfedmma_deploy.backbone.clip import Backbone

__all__ = [
    "NotMeasuredError",
    "Subject",
    "compiled_torch",
    "eager_torch",
    "exported",
    "open_tuned",
    "plain_file",
    "plain_onnx",
    "plain_tower",
]

Call = Callable[[], object]
Feed = Mapping[str, NDArray[Any]]
Device = Literal["cpu", "cuda"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SEED = 0
TURNS = 16
"""Batches of different clients that take turns, so that no client's weights stay in a cache."""


class NotMeasuredError(Exception):
    """A peer that cannot run on this machine; the message says why."""


@dataclass(frozen=True)
class Subject:
    """A model under measurement."""

    name: str
    precision: str
    flop: int
    """Floating-point operations per image, without adapters."""
    prepare: Callable[[int], Call]
    """Batch size -> one call on as many images, which returns when the features are there."""
    flavour: str | None = None
    clients: int | None = None
    """Clients in the file; every batch mixes as many of them as it has images."""

    @property
    def label(self) -> str:
        """Its name among others: `pfedmma int8, 100 clients`."""
        return self.name if self.clients is None else f"{self.name}, {self.clients} clients"


class PlainImageTower(nn.Module):
    """open_clip's own image tower: normalised pixels [B, 3, H, W] -> features [B, D] of norm 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        features: Tensor = self.model.encode_image(pixel_values, normalize=True)  # type: ignore[operator]
        return features


def exported(bundle: Bundle, backbone: Backbone, device: Device, threads: int) -> Subject:
    """The image tower of a bundle of `backbone`, uint8 in, its clients mixed in every batch."""
    manifest = bundle.manifest
    session = open_tuned(bundle.file(VISION_MODEL), device, threads)
    size, clients = manifest.preprocessing.image_size, len(manifest.clients) - 1

    def prepare(batch: int) -> Call:
        rng = np.random.default_rng(SEED)
        pixels = rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
        mixed = [
            1 + (np.array(spread_clients(batch, clients)) - 1 + number) % clients
            for number in range(TURNS)
        ]
        return _run(session, [{"pixel_values": pixels, "client": row} for row in mixed], device)

    name, flop = f"pfedmma {manifest.precision}", image_flop(backbone)
    return Subject(name, manifest.precision, flop, prepare, manifest.flavour, clients)


def plain_onnx(
    backbone: Backbone, folder: Path, device: Device, threads: int, precision: str = "fp32"
) -> Subject:
    """The unadapted tower in ONNX Runtime, fp32 or fp16 pixels in, normalised already."""
    session = open_tuned(plain_file(backbone, folder, precision), device, threads)

    def prepare(batch: int) -> Call:
        pixels = _pixels(backbone, batch, "cpu", precision).numpy()
        return _run(session, [{"pixel_values": pixels}], device)

    return Subject(
        f"onnxruntime {precision}", precision, image_flop(backbone, token_shortcuts=False), prepare
    )


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

    def prepare(batch: int) -> Call:
        return _run_torch(tower, _pixels(backbone, batch, device, precision))

    return Subject(
        f"torch eager {precision}", precision, image_flop(backbone, token_shortcuts=False), prepare
    )


def compiled_torch(backbone: Backbone, device: Device, precision: str = "fp32") -> Subject:
    """The same through `torch.compile` with its defaults.

    `prepare` compiles; it raises `NotMeasuredError` where this machine cannot.
    """
    tower = torch.compile(plain_tower(backbone, device, precision))

    def prepare(batch: int) -> Call:
        call = _run_torch(tower, _pixels(backbone, batch, device, precision))
        try:
            with quiet_libraries():
                call()
        except Exception as error:  # the compiler's exceptions have no common base
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise NotMeasuredError(f"torch.compile cannot compile here: {reason}") from error
        return call

    return Subject(
        f"torch.compile {precision}",
        precision,
        image_flop(backbone, token_shortcuts=False),
        prepare,
    )


def open_tuned(file: Path, device: Device, threads: int) -> onnxruntime.InferenceSession:
    """A session that computes with so many threads on the CPU, or really on the GPU."""
    if device == "cuda":
        return open_session(file, device)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, feeds: Sequence[Feed], device: Device) -> Call:
    """One call of a session, with the feeds in turn.

    On a GPU inputs and output stay there, and the end is waited for.
    """
    turns = itertools.cycle(feeds)
    if device == "cpu":
        return lambda: session.run(None, next(turns))
    bindings = itertools.cycle([bound(session, feed, device) for feed in feeds])

    def call() -> None:
        binding = next(bindings)
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return call


def bound(session: onnxruntime.InferenceSession, feed: Feed, device: Device) -> Any:
    """An IO binding: inputs copied to the device beforehand, the output left there."""
    import onnxruntime

    binding = session.io_binding()
    for name, values in feed.items():
        value = onnxruntime.OrtValue.ortvalue_from_numpy(values, device, 0)
        binding.bind_ortvalue_input(name, value)
    binding.bind_output(session.get_outputs()[0].name, device, 0)
    return binding


def _run_torch(tower: Callable[[Tensor], Tensor], pixels: Tensor) -> Call:
    def call() -> None:
        with torch.inference_mode():
            tower(pixels)
        if pixels.is_cuda:
            torch.cuda.synchronize()

    return call


def plain_tower(backbone: Backbone, device: Device, precision: str = "fp32") -> PlainImageTower:
    """open_clip's image tower on `device`; the backbone itself stays as it is."""
    model: nn.Module = backbone.model
    if precision != "fp32" or backbone.device.type != device:
        model = copy.deepcopy(model).to(device, DTYPES[precision])
    return PlainImageTower(model).eval()


def _pixels(backbone: Backbone, batch: int, device: Device, precision: str) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    size = backbone.image_size
    pixels = torch.randn(batch, 3, size, size, generator=generator)
    return pixels.to(device, DTYPES[precision])


def written_flop(backbone: Backbone) -> int:
    """Operations per image of the tower as CLIP is written, all tokens to the end."""
    return image_flop(backbone, token_shortcuts=False)
