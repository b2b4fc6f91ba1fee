"""The machine's practical peak: the rate of a large matrix product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from pfedmma_deploy.benchmark.rows import Row
from pfedmma_deploy.benchmark.timing import Contestant, run_rounds, spread
from pfedmma_deploy.progress import Progress

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["PEAK_PRECISIONS", "matmul", "measure_peaks"]

Device = Literal["cpu", "cuda"]
PEAK_PRECISIONS: dict[Device, dict[str, torch.dtype]] = {
    "cpu": {"fp32": torch.float32},
    "cuda": {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16},
}
"""Precisions in which a share of the peak is taken. A CPU's fp16 and int8 products differ too much
between libraries to be anybody's peak."""
SIZES: dict[Device, int] = {"cpu": 2048, "cuda": 8192}


def matmul(device: Device, precision: str, threads: int) -> Contestant:
    """The product that shares refer to; its items are floating-point operations.

    On a GPU torch's (cuBLAS), on a CPU that of ONNX Runtime: torch's and numpy's reach half of it
    on some processors, which would make every share look better than it is.
    """
    call = _torch(device, precision) if device == "cuda" else _onnxruntime(threads)
    return Contestant(f"matmul {precision}", call, 2.0 * SIZES[device] ** 3)


def measure_peaks(
    device: Device, threads: int, rounds: int, seconds: float, progress: Progress
) -> Iterator[Row]:
    """Rows with the rate of the product in each library and precision."""
    flop = 2.0 * SIZES[device] ** 3
    calls: dict[tuple[str, str], Callable[[], object]] = {
        ("torch", precision): _torch(device, precision) for precision in PEAK_PRECISIONS[device]
    }
    if device == "cpu":
        calls["onnxruntime", "fp32"] = _onnxruntime(threads)
    contestants = [Contestant(" ".join(key), call, flop) for key, call in calls.items()]
    windows = run_rounds(contestants, rounds, seconds, progress=progress, label="matrix products")
    for library, precision in calls:
        rates = spread(windows[f"{library} {precision}"].rates)
        yield Row(
            "peak",
            None,
            f"{library} {precision}",
            precision,
            flop_per_second=rates.median,
            quartiles=rates.to_list(),
        )


def _torch(device: Device, precision: str) -> Callable[[], object]:
    n, kind = SIZES[device], PEAK_PRECISIONS[device][precision]
    left, right = (torch.randn(n, n, device=device).to(kind) for _ in range(2))

    def call() -> None:
        torch.mm(left, right)
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def _onnxruntime(threads: int) -> Callable[[], object]:
    n = SIZES["cpu"]
    left = np.random.default_rng(0).standard_normal((n, n), np.float32)
    session = _product_of(left.T.copy(), threads)
    return lambda: session.run(None, {"left": left})


def _product_of(
    right: np.ndarray[tuple[int, int], np.dtype[np.float32]], threads: int
) -> onnxruntime.InferenceSession:
    """A session that multiplies by a constant matrix, as the layers of a model do."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    n = len(right)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [n, n]) for name in ("left", "out")
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["left", "right"], ["out"])],
        "product",
        ends[:1],
        ends[1:],
        [numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
