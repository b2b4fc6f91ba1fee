"""ONNX Runtime sessions on the device that was asked for, or a reason why not.

ONNX Runtime falls back to the CPU without an exception when its CUDA provider cannot load. Here
`cuda` means CUDA: a session that ended up elsewhere is refused.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pfedmma_deploy.errors import BundleError, DeviceError, UsageError

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["DEVICES", "Device", "cuda_problem", "open_session", "resolve_device"]

Device = Literal["auto", "cpu", "cuda"]
DEVICES: tuple[Device, ...] = ("auto", "cpu", "cuda")

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_INSTALL = (
    "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'"
)


def resolve_device(device: str) -> tuple[Literal["cpu", "cuda"], str | None]:
    """The device to use, and with `auto` the reason why it is not CUDA.

    Raises:
        DeviceError: `cuda` was asked for and this machine cannot.
        UsageError: `device` is none of `auto`, `cpu`, `cuda`.
    """
    if device not in DEVICES:
        raise UsageError(f"Device {device!r} is unknown: expected {', '.join(DEVICES)}.")
    if device == "cpu":
        return "cpu", None
    problem = cuda_problem()
    if problem is None:
        return "cuda", None
    if device == "cuda":
        raise DeviceError(f"Device 'cuda' cannot be used: {problem}. Or choose --device cpu.")
    return "cpu", problem


def cuda_problem() -> str | None:
    """Why CUDA cannot be used here, or None, by the package and the driver; loads no model."""
    import onnxruntime

    if CUDA not in onnxruntime.get_available_providers():
        return f"the installed ONNX Runtime has no CUDA provider; run `{_INSTALL}`"
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return f"no NVIDIA driver was found ({name} cannot be loaded); install one"
    code, count = driver.cuInit(0), ctypes.c_int(0)
    if code == 0:
        code = driver.cuDeviceGetCount(ctypes.byref(count))
    if code != 0:
        return f"the NVIDIA driver does not start (CUDA error {code}); see what nvidia-smi says"
    if count.value == 0:
        return "the NVIDIA driver sees no GPU; see what nvidia-smi says"
    return None


def open_session(file: Path, device: Literal["cpu", "cuda"]) -> onnxruntime.InferenceSession:
    """A session for one ONNX file that really runs on `device`.

    Raises:
        BundleError: ONNX Runtime cannot read the file.
        DeviceError: the session ended up on another provider than asked for.
    """
    import onnxruntime

    remarks = io.StringIO()
    if device == "cuda":
        # torch, which would otherwise have loaded CUDA's libraries, is not there.
        with contextlib.redirect_stdout(remarks):
            onnxruntime.preload_dlls()
    wanted = [CUDA, CPU] if device == "cuda" else [CPU]
    try:
        # Not `session.disable_cpu_ep_fallback`: it also refuses the shape arithmetic that ONNX
        # Runtime keeps on the CPU on purpose.
        session = onnxruntime.InferenceSession(str(file), providers=wanted, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise BundleError(
            f"ONNX Runtime {onnxruntime.__version__} cannot open {file}: {error} "
            "Export it again, or update onnxruntime."
        ) from error
    found = session.get_providers()[0]
    if found != wanted[0]:
        because = " ".join(remarks.getvalue().split()) or "its libraries did not load"
        raise DeviceError(
            f"{file.name} was to run on {wanted[0]}, ONNX Runtime chose {found}: {because}. "
            f"Run `{_INSTALL}`, or choose --device cpu."
        )
    return session
