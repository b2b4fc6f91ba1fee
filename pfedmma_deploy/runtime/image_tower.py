"""The image tower at work: images are read and decoded by threads while the model computes.

On CUDA a call hands its inputs over by IO binding. TensorRT compiles the model for one GPU, which
takes minutes; the engine is kept in `~/.cache/pfedmma/tensorrt` (see `pfedmma_deploy.caches`), in a
folder per model, version of ONNX Runtime and version of TensorRT, since an engine fits no other.
The folder may be deleted at any time.

Both GPU paths are written from ONNX Runtime's documentation; neither has run on a GPU yet.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pfedmma_deploy.caches import cache_folder
from pfedmma_deploy.errors import DeviceError, ImageError
from pfedmma_deploy.runtime.bundle import VISION_MODEL, Bundle
from pfedmma_deploy.runtime.manifest import Manifest
from pfedmma_deploy.runtime.prefetch import prefetch
from pfedmma_deploy.runtime.providers import (
    model_inputs,
    open_session,
    resolve_device,
    tensorrt_version,
    usable_cores,
)
from pfedmma_deploy.runtime.sources import ImageSource, load_pixels
from pfedmma_deploy.types import Skipped

Pixels = NDArray[np.uint8]
Indices = NDArray[np.int64]
Strengths = NDArray[np.float32]
Features = NDArray[np.float32]
OnSkip = Callable[[Skipped], None]
View = tuple[int, float]
"""A client's index and strength."""
Request = tuple[str, ImageSource, tuple[View, ...]]
"""An image's name, the image, and who looks at it."""

OUTPUT = "image_embeds"
LARGEST_BATCH = 256
"""Images per call on a GPU, at most: what TensorRT's engines are compiled for."""
USUAL_BATCH = 32
"""Images per call that they are tuned for."""


class ImageTower:
    """The image tower of a bundle with all that feeds it; safe to share between threads."""

    def __init__(self, bundle: Bundle, device: str, threads: int | None) -> None:
        """Open the tower on `device`; arguments and errors are those of `Classifier.load`."""
        self._bundle, self._threads = bundle, threads or usable_cores()
        self.device, self.fallback_reason = resolve_device(device)
        try:
            self._session = self._open()
        except DeviceError as error:
            # The driver answered, and yet the provider's own libraries do not load.
            if device != "auto":
                raise
            self.device, self.fallback_reason = "cpu", str(error)
            self._session = self._open()
        self.provider = str(self._session.get_providers()[0])
        self._run: Callable[[Sequence[Pixels], Indices, Strengths], Features]
        if self.device == "cpu":
            self._run = partial(run_on_cpu, self._session)
        else:
            self._run = GpuModel(self._session)
        self._readers = ThreadPoolExecutor(self._threads, thread_name_prefix="pfedmma-read")

    def _open(self) -> onnxruntime.InferenceSession:
        options = None
        if self.device == "tensorrt":
            options = tensorrt_options(self._bundle.manifest)
        file = self._bundle.file(VISION_MODEL)
        return open_session(file, self.device, threads=self._threads, options=options)

    def compute(
        self, requests: Iterable[Request], batch_size: int, on_skip: OnSkip | None
    ) -> Generator[tuple[Request, list[Features]]]:
        """Each request whose image can be read, with the features [D] for each of its views.

        Up to `batch_size` images wait decoded while the model works on as many others.

        Raises:
            ImageError: an image cannot be read and there is no `on_skip`.
        """

        def read(request: Request) -> Pixels:
            return load_pixels(request[1], self._bundle.manifest.preprocessing)

        # Two images per thread keep all of them busy while a small batch is at the model.
        most = max(batch_size, 2 * self._threads)
        with closing(prefetch(requests, read, self._readers, most)) as reading:
            while batch := list(islice(reading, batch_size)):
                pixels: list[Pixels] = []
                views: list[View] = []
                for (_, _, own), image in batch:
                    if image.exception() is None:
                        # An image that several clients look at is one row for each of them.
                        pixels += [image.result()] * len(own)
                        views += own
                # Answers go out in the order of the requests, what was skipped in between.
                rows = iter(self.features(pixels, views) if pixels else ())
                for request, image in batch:
                    error, name = image.exception(), request[0]
                    if error is None:
                        yield request, list(islice(rows, len(request[2])))
                    elif not isinstance(error, ImageError):
                        raise error
                    elif on_skip is None:
                        raise ImageError(f"{name}: {error}") from error
                    else:
                        on_skip(Skipped(name, str(error)))

    def features(self, pixels: Sequence[Pixels], views: Sequence[View]) -> Features:
        """Features [N, D] of N >= 1 images uint8 [S, S, 3], each for its own view, in one call."""
        clients, strengths = zip(*views, strict=True)
        return self._run(pixels, np.asarray(clients, np.int64), np.asarray(strengths, np.float32))


def run_on_cpu(
    session: onnxruntime.InferenceSession,
    pixels: Sequence[Pixels],
    clients: Indices,
    strengths: Strengths,
) -> Features:
    """Features [N, D] of N images uint8 [S, S, 3], N >= 1, each as its own client's model sees it.

    Safe to call from many threads.
    """
    feed = model_inputs(session, np.stack(pixels), clients, strengths)
    features: Features = session.run([OUTPUT], feed)[0]
    return features


class GpuModel:
    """A GPU in the hands of one thread; safe to call from many.

    One thread, because ONNX Runtime keeps GPU memory for every thread that calls it.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pfedmma-gpu")

    def __call__(
        self, pixels: Sequence[Pixels], clients: Indices, strengths: Strengths
    ) -> Features:
        """As `run_on_cpu`; at most `LARGEST_BATCH` images go to the GPU at a time."""
        parts = []
        for start in range(0, len(pixels), LARGEST_BATCH):
            rows = slice(start, start + LARGEST_BATCH)
            part = np.stack(pixels[rows])
            call = self._thread.submit(self._bind, part, clients[rows], strengths[rows])
            parts.append(call.result())
        return np.concatenate(parts)

    def _bind(self, pixels: Pixels, clients: Indices, strengths: Strengths) -> Features:
        binding = self._session.io_binding()
        feed = model_inputs(self._session, pixels, clients, strengths)
        for name, values in feed.items():
            binding.bind_cpu_input(name, values)
        binding.bind_output(OUTPUT)
        self._session.run_with_iobinding(binding)
        features: Features = binding.copy_outputs_to_cpu()[0]
        return features


def tensorrt_options(manifest: Manifest) -> dict[str, str]:
    """Provider options for the image tower of a bundle: profiles, precision, engine cache.

    Raises:
        DeviceError: TensorRT does not know the bundle's operators, or the engine cache cannot be
            made.
        OSError: TensorRT's library cannot be loaded.
    """
    if manifest.flavour != "portable" or manifest.precision == "int8":
        raise DeviceError(
            "TensorRT takes fp32 and fp16 models in standard operators, this bundle is "
            f"{manifest.precision} in flavour {manifest.flavour}: export it with "
            "--flavour portable --precision fp16 (or fp32), or choose --device cuda."
        )
    cache = _engine_folder(manifest.files[VISION_MODEL].sha256)
    size = manifest.preprocessing.image_size
    options = {
        "device_id": "0",
        "trt_fp16_enable": str(manifest.precision == "fp16"),
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(cache),
    }
    for which, batch in (("min", 1), ("opt", USUAL_BATCH), ("max", LARGEST_BATCH)):
        shapes = f"pixel_values:{batch}x{size}x{size}x3,client:{batch}"
        if manifest.strength is not None:
            shapes += f",strength:{batch}"
        options[f"trt_profile_{which}_shapes"] = shapes
    return options


def _engine_folder(sha256: str) -> Path:
    """Folder for the engines of one model, made where it is not there."""
    # Without caches an engine is built in a place of its own every time.
    base = cache_folder("tensorrt") or Path(tempfile.mkdtemp(prefix="pfedmma-tensorrt-"))
    name = f"{sha256[:16]}-ort{onnxruntime.__version__}-trt{tensorrt_version()}"
    folder = base / name
    try:
        # Engines are run as they are: nobody else may put one there.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DeviceError(
            f"TensorRT's engines cannot be kept in {folder} ({error.strerror}): "
            "set PFEDMMA_CACHE to a folder that can be written."
        ) from error
    return folder
