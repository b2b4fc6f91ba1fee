"""From images to features: read and decoded by threads while the model works."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.errors import DeviceError, ImageError, UsageError
from pfedmma_deploy.runtime.ahead import work_ahead
from pfedmma_deploy.runtime.bundle import VISION_MODEL, Bundle
from pfedmma_deploy.runtime.cpus import usable_cores
from pfedmma_deploy.runtime.image_model import CpuModel, GpuModel, ImageModel
from pfedmma_deploy.runtime.inputs import ImageSource, load_pixels
from pfedmma_deploy.runtime.providers import open_session, resolve_device
from pfedmma_deploy.runtime.tensorrt import require_takes, tensorrt_options
from pfedmma_deploy.types import Skipped

__all__ = ["ImageFeatures", "OnSkip", "Request"]

Features = NDArray[np.float32]
OnSkip = Callable[[Skipped], None]
Request = tuple[str, ImageSource, tuple[int, ...]]
"""An image's name, the image, and the indices of the clients that look at it."""


class ImageFeatures:
    """The image tower of a bundle with all that feeds it; safe to share between threads."""

    def __init__(self, bundle: Bundle, device: str, threads: int | None, cuda_graphs: bool) -> None:
        """Open the tower on `device`; arguments and errors are those of `Classifier.load`."""
        if cuda_graphs and device != "cuda":
            raise UsageError(f"CUDA graphs need device 'cuda', found {device!r}.")
        self._bundle, self._threads = bundle, threads or usable_cores()
        self.device, self.fallback_reason = resolve_device(device)
        try:
            self._model = self._open(cuda_graphs)
        except DeviceError as error:
            if device != "auto":
                raise
            self.device, self.fallback_reason = "cpu", str(error)
            self._model = self._open(cuda_graphs)
        self._readers = ThreadPoolExecutor(self._threads, thread_name_prefix="pfedmma-read")

    def _open(self, cuda_graphs: bool) -> ImageModel:
        manifest, device = self._bundle.manifest, self.device
        options = {"enable_cuda_graph": "1"} if cuda_graphs else None
        if device == "tensorrt":
            require_takes(manifest)
            options = tensorrt_options(manifest)
        file = self._bundle.file(VISION_MODEL)
        session = open_session(file, device, threads=self._threads, options=options)
        self.provider = str(session.get_providers()[0])
        """The execution provider really in use, by ONNX Runtime's name."""
        if device == "cpu":
            return CpuModel(session)
        size, dim = manifest.preprocessing.image_size, manifest.embed_dim
        return GpuModel(session, size, dim, graphs=cuda_graphs)

    def compute(
        self, requests: Iterable[Request], batch_size: int, on_skip: OnSkip | None
    ) -> Generator[tuple[Request, list[Features]]]:
        """Each request whose image can be read, with the features [D] for each of its clients.

        Up to `batch_size` images wait decoded while the model works on as many others.

        Raises:
            ImageError: an image cannot be read and there is no `on_skip`.
        """

        def read(request: Request) -> NDArray[np.uint8]:
            return load_pixels(request[1], self._bundle.manifest.preprocessing)

        ahead = max(batch_size, 2 * self._threads)
        with closing(work_ahead(requests, read, self._readers, ahead)) as reading:
            while batch := list(islice(reading, batch_size)):
                good = [entry for entry in batch if entry[1].exception() is None]
                pixels = [image.result() for (_, _, indices), image in good for _ in indices]
                clients = [index for (_, _, indices), _ in good for index in indices]
                rows = iter(self._model(pixels, np.asarray(clients, np.int64)) if good else ())
                for request, image in batch:
                    error = image.exception()
                    if error is None:
                        yield request, list(islice(rows, len(request[2])))
                    else:
                        _skip(request[0], error, on_skip)


def _skip(name: str, error: BaseException, on_skip: OnSkip | None) -> None:
    """Report an image that cannot be read, or raise what kept it from being read."""
    if not isinstance(error, ImageError):
        raise error
    if on_skip is None:
        raise ImageError(f"{name}: {error}") from error
    on_skip(Skipped(name, str(error)))
