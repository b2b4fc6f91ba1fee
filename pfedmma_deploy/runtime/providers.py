"""ONNX Runtime sessions on the device that was asked for, or a reason why not.

ONNX Runtime falls back to the CPU without an exception when its CUDA provider cannot load. Here
`cuda` means CUDA, and `tensorrt` TensorRT: a session that ended up elsewhere is refused. It also
takes every CPU of the machine for its own, which `usable_cores` corrects.

numpy is not imported: `pfedmma doctor` asks here, on machines where it may be broken.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pfedmma_deploy.errors import BundleError, DeviceError, UsageError

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray

Device = Literal["auto", "cpu", "cuda", "tensorrt"]
RealDevice = Literal["cpu", "cuda", "tensorrt"]
DEVICES: tuple[Device, ...] = ("auto", "cpu", "cuda", "tensorrt")

CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))
_PROVIDERS: Mapping[RealDevice, tuple[str, ...]] = {
    "cpu": (CPU,),
    "cuda": (CUDA, CPU),
    # What TensorRT does not take goes on on CUDA.
    "tensorrt": (TENSORRT, CUDA, CPU),
}
# ONNX Runtime 1.30 and 1.31 are linked to this version.
_TENSORRT = "nvinfer_10.dll" if sys.platform == "win32" else "libnvinfer.so.10"
CPUS = Path("/sys/devices/system/cpu")
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
_INSTALL = (
    "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'"
)


def resolve_device(device: str) -> tuple[RealDevice, str | None]:
    """The device to use, and with `auto` (which is CUDA or else the CPU) why it is not CUDA.

    Raises:
        DeviceError: `cuda` or `tensorrt` was asked for and this machine cannot.
        UsageError: `device` is none of `auto`, `cpu`, `cuda`, `tensorrt`.
    """
    if device not in DEVICES:
        raise UsageError(f"Device {device!r} is unknown: expected {', '.join(DEVICES)}.")
    if device == "cpu":
        return "cpu", None
    problem = tensorrt_problem() if device == "tensorrt" else cuda_problem()
    if device == "auto":
        return ("cuda", None) if problem is None else ("cpu", problem)
    if problem is not None:
        raise DeviceError(f"Device {device!r} cannot be used: {problem}. Or choose --device cpu.")
    return cast(RealDevice, device), None


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


def tensorrt_problem() -> str | None:
    """Why TensorRT cannot be used here, or None; it needs all that CUDA needs."""
    problem = cuda_problem()
    if problem is not None:
        return problem
    import onnxruntime

    if TENSORRT not in onnxruntime.get_available_providers():
        return f"the installed ONNX Runtime has no TensorRT provider; run `{_INSTALL}`"
    try:
        tensorrt_version()
    except OSError as error:
        return f"TensorRT 10 cannot be loaded ({error}); run `pip install 'tensorrt<11'`"
    return None


def tensorrt_version() -> int:
    """TensorRT's version as one number, such as 101304.

    Raises:
        OSError: its library cannot be loaded.
    """
    try:
        library = ctypes.CDLL(_TENSORRT)
    except OSError:
        # The Python package puts its libraries where only it finds them.
        with contextlib.suppress(ImportError):
            importlib.import_module("tensorrt")
        library = ctypes.CDLL(_TENSORRT)
    return int(library.getInferLibVersion())


def open_session(
    file: Path,
    device: RealDevice,
    *,
    threads: int | None = None,
    options: Mapping[str, str] | None = None,
) -> onnxruntime.InferenceSession:
    """A session for one ONNX file that really runs on `device`.

    Args:
        file: the model.
        device: what it runs on.
        threads: CPU threads of one call; default the cores that this process may use.
        options: of the first execution provider, by ONNX Runtime's names.

    Raises:
        BundleError: ONNX Runtime cannot read the file.
        DeviceError: the session ended up on another provider than asked for, or the provider
            does not take the model with these options.
    """
    import onnxruntime

    remarks = io.StringIO()
    if device != "cpu":
        # torch, which would otherwise have loaded CUDA's libraries, is not there.
        with contextlib.redirect_stdout(remarks):
            onnxruntime.preload_dlls()
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads or usable_cores()
    # Spinning would take the cores from the threads that decode the next images.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    first, *others = _PROVIDERS[device]
    try:
        # Not `session.disable_cpu_ep_fallback`: it also refuses the shape arithmetic that ONNX
        # Runtime keeps on the CPU on purpose.
        session = onnxruntime.InferenceSession(
            str(file),
            settings,
            providers=[(first, dict(options)) if options else first, *others],
            enable_fallback=0,
        )
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        if options:
            given = ", ".join(f"{key}={value}" for key, value in options.items())
            raise DeviceError(
                f"{first} does not take {file.name} with {given}: {error} "
                "Choose --device cuda, or --device cpu."
            ) from error
        raise BundleError(
            f"ONNX Runtime {onnxruntime.__version__} cannot open {file}: {error} "
            "Export it again, or update onnxruntime."
        ) from error
    found = session.get_providers()[0]
    if found != first:
        because = " ".join(remarks.getvalue().split()) or "its libraries did not load"
        raise DeviceError(
            f"{file.name} was to run on {first}, ONNX Runtime chose {found}: {because}. "
            f"Run `{_INSTALL}`, or choose --device cpu."
        )
    return session


def model_inputs(
    session: onnxruntime.InferenceSession,
    items: NDArray[Any],
    clients: NDArray[Any],
    strengths: NDArray[Any],
) -> dict[str, NDArray[Any]]:
    """What one of a bundle's models takes, by the names of its inputs.

    Models of an older bundle take no strength; whoever asks them has refused others than 1.

    Args:
        session: the model's.
        items: uint8 pixels [N, S, S, 3] or int64 token ids [N, context].
        clients: their indices, int64 [N].
        strengths: float32 [N].
    """
    names = [node.name for node in session.get_inputs()]
    return dict(zip(names, (items, clients, strengths), strict=False))


def usable_cores() -> int:
    """Physical cores that this process may run on, at least 1.

    On Linux the CPU mask (`taskset`, Kubernetes' static CPUs) and the cgroup's quota (`docker run
    --cpus`) count, which ONNX Runtime's own default ignores; two hyper-threads of a core count
    once, since they share the units that multiply matrices. Elsewhere all logical CPUs count.
    """
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = set()
    for cpu in os.sched_getaffinity(0):
        try:
            # The same text for the hyper-threads of one core.
            cores.add((CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, math.ceil(min(len(cores), _quota())))


def _quota() -> float:
    """CPU seconds per second that the cgroup and those around it allow; infinite without limit."""
    try:
        lines = OWN_CGROUP.read_text().splitlines()
    except OSError:
        return math.inf
    least = math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        root = CGROUPS if not controllers else CGROUPS / "cpu"
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Inside a container the path may be the host's, and the limits then stand at the root.
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            least = min(least, _limit(folder))
            if folder == root:
                break
    return least


def _limit(folder: Path) -> float:
    """The quota of one cgroup, version 2 (`cpu.max`) or 1 (`cpu.cfs_*`)."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        unlimited = quota in {"max", "-1"}
        return math.inf if unlimited else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
