"""The image tower at work: decoded images in, features out, on the CPU or on a GPU.

On a GPU a call copies from page-locked memory, into which the images were stacked in the first
place, straight to the device. With CUDA graphs a call has one of a few fixed sizes, its inputs and
outputs have fixed places, and what the GPU does is recorded once per size and then replayed.

The GPU paths are written from ONNX Runtime's documentation and tested on the CPU; how fast they
are is not measured yet.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.runtime.tensorrt import LARGEST_BATCH

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["CpuModel", "GpuModel", "ImageModel", "page_locked"]

Pixels = NDArray[np.uint8]
Indices = NDArray[np.int64]
Features = NDArray[np.float32]

OUTPUT = "image_embeds"
MEMORY = "cuda"
"""Where a recorded call's inputs and outputs lie, by ONNX Runtime's name."""


class ImageModel(Protocol):
    """Images and the client of each to features; safe to call from many threads."""

    def __call__(self, images: Sequence[Pixels], clients: Indices) -> Features:
        """Features [N, D] of N images uint8 [S, S, 3], N >= 1."""
        ...


class CpuModel:
    """The plain way."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session

    def __call__(self, images: Sequence[Pixels], clients: Indices) -> Features:
        """Features [N, D]."""
        feed = {"pixel_values": np.stack(images), "client": clients}
        features: Features = self._session.run([OUTPUT], feed)[0]
        return features


@dataclass(frozen=True)
class _Recorded:
    """One size of call with fixed places in the GPU's memory."""

    pixels: Any
    clients: Any
    features: Any
    binding: Any
    settings: Any


class GpuModel:
    """A GPU in the hands of one thread, with page-locked memory for what goes there.

    One thread, because a recorded CUDA graph belongs to the thread that recorded it and must not
    be replayed by two at once, and because ONNX Runtime keeps GPU memory for every thread that
    calls it.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        image_size: int,
        embed_dim: int,
        *,
        graphs: bool,
    ) -> None:
        self._session, self._graphs = session, graphs
        self._size, self._embed_dim = image_size, embed_dim
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pfedmma-gpu")
        self._spare: SimpleQueue[Pixels] = SimpleQueue()
        self._recorded: dict[int, _Recorded] = {}

    def __call__(self, images: Sequence[Pixels], clients: Indices) -> Features:
        """Features [N, D]; at most `LARGEST_BATCH` images go to the GPU at a time."""
        parts = []
        for start in range(0, len(images), LARGEST_BATCH):
            part = slice(start, start + LARGEST_BATCH)
            parts.append(self._call(images[part], clients[part]))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _call(self, images: Sequence[Pixels], clients: Indices) -> Features:
        count = len(images)
        buffer = self._borrow(count)
        try:
            np.stack(images, out=buffer[:count])
            run = self._replay if self._graphs else self._bind
            return self._thread.submit(run, buffer, clients).result()
        finally:
            self._spare.put(buffer)

    def _borrow(self, count: int) -> Pixels:
        """A page-locked buffer for `count` images or more, one that lies idle where it fits."""
        try:
            buffer = self._spare.get_nowait()
        except Empty:
            buffer = None
        if buffer is None or len(buffer) < count:
            buffer = page_locked((_rounded(count), self._size, self._size, 3))
        return buffer

    def _bind(self, buffer: Pixels, clients: Indices) -> Features:
        binding = self._session.io_binding()
        binding.bind_cpu_input("pixel_values", buffer[: len(clients)])
        binding.bind_cpu_input("client", clients)
        binding.bind_output(OUTPUT)
        self._session.run_with_iobinding(binding)
        features: Features = binding.copy_outputs_to_cpu()[0]
        return features

    def _replay(self, buffer: Pixels, clients: Indices) -> Features:
        count = len(clients)
        size = _rounded(count)
        if size not in self._recorded:
            self._recorded[size] = self._prepare(size)
        call = self._recorded[size]
        # The rows beyond `count` hold older images, whose features are not looked at.
        call.pixels.update_inplace(buffer[:size])
        call.clients.update_inplace(np.pad(clients, (0, size - count)))
        self._session.run_with_iobinding(call.binding, call.settings)
        features: Features = call.features.numpy()[:count].copy()
        return features

    def _prepare(self, size: int) -> _Recorded:
        """Places for one size; ONNX Runtime records the graph at the first run with its number."""
        import onnxruntime

        def place(shape: list[int], kind: type) -> Any:
            return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind, MEMORY, 0)

        pixels = place([size, self._size, self._size, 3], np.uint8)
        clients = place([size], np.int64)
        features = place([size, self._embed_dim], np.float32)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("pixel_values", pixels)
        binding.bind_ortvalue_input("client", clients)
        binding.bind_ortvalue_output(OUTPUT, features)
        settings = onnxruntime.RunOptions()
        settings.add_run_config_entry("gpu_graph_id", str(size))
        return _Recorded(pixels, clients, features, binding, settings)


def page_locked(shape: tuple[int, ...]) -> Pixels:
    """Zeros in memory that the GPU reads by itself; ordinary memory where that cannot be had.

    By the driver (`cuMemHostRegister`), since ONNX Runtime's Python interface hands out none.
    """
    pixels = np.zeros(shape, np.uint8)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return pixels
    address, context = ctypes.c_void_p(pixels.ctypes.data), ctypes.c_void_p()
    # The context that CUDA's runtime, and so ONNX Runtime, uses too.
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) != 0:
        return pixels
    with _current(driver, context):
        portable = 1  # for all contexts
        size = ctypes.c_size_t(pixels.nbytes)
        locked = driver.cuMemHostRegister_v2(address, size, portable) == 0
    if locked:
        # At the program's end the driver may be gone before; then the memory goes with it.
        weakref.finalize(pixels, _unlock, driver, context, address).atexit = False
    return pixels


def _unlock(driver: ctypes.CDLL, context: ctypes.c_void_p, address: ctypes.c_void_p) -> None:
    with _current(driver, context):
        driver.cuMemHostUnregister(address)


@contextmanager
def _current(driver: ctypes.CDLL, context: ctypes.c_void_p) -> Iterator[None]:
    """The context as the calling thread's own, which the driver's calls refer to."""
    driver.cuCtxPushCurrent_v2(context)
    try:
        yield
    finally:
        driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


def _rounded(count: int) -> int:
    """The next power of two: calls come in few sizes."""
    return 1 << (count - 1).bit_length()
