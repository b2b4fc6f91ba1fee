"""TensorRT below ONNX Runtime: what it needs, with which shapes, and where its engines are kept.

TensorRT compiles a model for one GPU, which takes minutes; the engine is kept in
`~/.cache/pfedmma/tensorrt` (see `pfedmma_deploy.caches`), in a folder per model,
version of ONNX Runtime and version of TensorRT, since an engine fits no other. The folder may be
deleted at any time.

Written from ONNX Runtime's documentation; not measured on a GPU yet.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import sys
import tempfile
from pathlib import Path

from pfedmma_deploy.caches import cache_folder
from pfedmma_deploy.errors import DeviceError
from pfedmma_deploy.runtime.bundle import VISION_MODEL
from pfedmma_deploy.runtime.manifest import Manifest

__all__ = ["LARGEST_BATCH", "require_takes", "tensorrt_options", "tensorrt_version"]

LARGEST_BATCH = 256
"""Images per call that an engine is compiled for, at most."""
USUAL_BATCH = 32
"""Images per call that it is tuned for."""
# ONNX Runtime 1.30 and 1.31 are linked to this version.
_LIBRARY = "nvinfer_10.dll" if sys.platform == "win32" else "libnvinfer.so.10"


def tensorrt_version() -> int:
    """TensorRT's version as one number, such as 101304.

    Raises:
        OSError: its library cannot be loaded.
    """
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        # The Python package puts its libraries where only it finds them.
        with contextlib.suppress(ImportError):
            importlib.import_module("tensorrt")
        library = ctypes.CDLL(_LIBRARY)
    return int(library.getInferLibVersion())


def require_takes(manifest: Manifest) -> None:
    """Raises `DeviceError` for a bundle whose operators TensorRT does not know."""
    if manifest.flavour == "portable" and manifest.precision != "int8":
        return
    raise DeviceError(
        "TensorRT takes fp32 and fp16 models in standard operators, this bundle is "
        f"{manifest.precision} in flavour {manifest.flavour}: export it with "
        "--flavour portable --precision fp16 (or fp32), or choose --device cuda."
    )


def tensorrt_options(manifest: Manifest) -> dict[str, str]:
    """Provider options for the image tower of a bundle: profiles, precision, engine cache.

    Raises:
        DeviceError: the engine cache cannot be made.
        OSError: TensorRT's library cannot be loaded.
    """
    cache = _cache_folder(manifest.files[VISION_MODEL].sha256)
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
        options[f"trt_profile_{which}_shapes"] = shapes
    return options


def _cache_folder(sha256: str) -> Path:
    """Folder for the engines of one model, made where it is not there."""
    import onnxruntime

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
