"""The published inference tables: those of `pfedmma bench`, with two peers more.

    python benchmarks/inference_table.py --backbone pfedmma-tiny,ViT-B-32,ViT-B-16 --rounds 3

torch.compile, which first compiles for a while; and a large matmul, the machine's practical peak,
in the same rounds as the models: a column says which share of it each of them reaches.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.backbone.flops import image_flop
from pfedmma_deploy.backbone.loading import backbone_shapes
from pfedmma_deploy.benchmark.inference import bench_inference
from pfedmma_deploy.benchmark.options import InferenceOptions
from pfedmma_deploy.benchmark.report import RATES, Row, Section, number, sections, write_report
from pfedmma_deploy.benchmark.subjects import DTYPES, Subject, plain_tower, run_torch
from pfedmma_deploy.benchmark.timing import Contestant, run_rounds, spread
from pfedmma_deploy.system import describe_environment

SIZES = {"cpu": 2048, "cuda": 8192}
PRECISIONS = {"cpu": ("fp32",), "cuda": ("fp32", "fp16", "bf16")}
"""In which a share of the peak is taken. A CPU's fp16 and int8 matmuls differ too much between
libraries to be anybody's peak."""
NOTE = (
    "Rate of a large matmul (2,048 squared on a CPU, 8,192 on a GPU) in the libraries "
    "that are compared. Shares of the peak below refer to ONNX Runtime's on a CPU, to torch's "
    "on a GPU, and count the operations that each model does, adapters left out."
)


def torch_matmul(device: str, precision: str) -> Callable[[], object]:
    """One large matmul by torch."""
    n = SIZES[device]
    left, right = (torch.randn(n, n, device=device).to(DTYPES[precision]) for _ in range(2))

    def call() -> None:
        torch.mm(left, right)
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def onnx_matmul(threads: int) -> Callable[[], object]:
    """One large matmul with a constant matrix by ONNX Runtime, as the layers of a model are."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    n = SIZES["cpu"]
    left = np.random.default_rng(0).standard_normal((n, n), np.float32)
    ends = []
    for name in ("left", "out"):
        ends.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [n, n]))
    nodes = [helper.make_node("MatMul", ["left", "right"], ["out"])]
    right = numpy_helper.from_array(left.T.copy(), "right")
    graph = helper.make_graph(nodes, "matmul", ends[:1], ends[1:], [right])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"left": left})


def peers(backbone: Backbone, options: InferenceOptions) -> list[Subject]:
    """torch.compile where this machine can, and the matmul that shares refer to.

    On a CPU ONNX Runtime's: torch's and numpy's reach half of it on some processors, which would
    make every share look better than it is.
    """
    device, found = options.device, []
    precision = "bf16" if device == "cuda" else "fp32"
    tower = torch.compile(plain_tower(backbone, device, precision))
    compiled = run_torch(f"torch.compile {precision}", tower, backbone, device, precision)
    try:
        compiled.prepare(2)()
        found.append(compiled)
    except Exception as error:  # the compiler's exceptions have no common base
        print(f"torch.compile cannot compile here: {error}", file=sys.stderr)
    for name in PRECISIONS[device]:
        on_gpu = device == "cuda"
        call = torch_matmul(device, name) if on_gpu else onnx_matmul(options.threads)
        found.append(Subject(f"matmul {name}", name, lambda _, call=call: call))  # type: ignore[misc]
    return found


def measure_peaks(options: InferenceOptions) -> list[dict[str, Any]]:
    """Rows with the rate of the matmul in each library and precision."""
    device = options.device
    calls = {f"torch {name}": torch_matmul(device, name) for name in PRECISIONS[device]}
    if device == "cpu":
        calls["onnxruntime fp32"] = onnx_matmul(options.threads)
    flop = 2.0 * SIZES[device] ** 3
    contestants = [Contestant(name, call, flop) for name, call in calls.items()]
    rows = []
    for name, windows in run_rounds(contestants, options.rounds, options.seconds).items():
        rate = spread(windows.rates)
        row = {"measure": "peak", "name": name, "precision": name.split()[-1]}
        quartiles = {"quartiles": [rate.low, rate.high]}
        rows.append({**row, "flop_per_second": rate.median, **quartiles})
    return rows


def share_of_peak(row: Row, device: str) -> float | None:
    """Share of the matmul's rate, 0 to 1, by the median ratio within the rounds."""
    matmul = (row.ratios or {}).get(f"matmul {row.precision}")
    if row.measure != "rate" or matmul is None or row.batch_size is None:
        return None
    # An exported tower leaves out in its last block what cannot reach the class token.
    flop = image_flop(backbone_shapes(row.backbone), token_shortcuts=row.clients is not None)
    # A matmul was counted as one call on as many "images" as the batch has.
    return matmul.median * row.batch_size * flop / (2.0 * SIZES[device] ** 3)


def with_shares(section: Section, rows: Sequence[Row], device: str) -> Section:
    """A table of the rates of these rows, with a last column of shares."""
    cells = []
    for line, row in zip(section.cells, rows, strict=True):
        cells.append([*line, number(share_of_peak(row, device), "{:.0f}", 100)])
    return replace(section, columns=[*section.columns, "% of peak"], cells=cells)


def without_matmuls(rows: Sequence[Row]) -> list[Row]:
    """The rows of models, and no ratio to a matmul."""
    found = []
    for row in rows:
        ratios = {k: v for k, v in (row.ratios or {}).items() if not k.startswith("matmul")}
        if not row.name.startswith("matmul"):
            found.append(replace(row, ratios=ratios or None))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--backbone", default="pfedmma-tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch-sizes", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    given = parser.parse_args()
    options = InferenceOptions(
        backbones=tuple(given.backbone.split(",")),
        batch_sizes=tuple(map(int, given.batch_sizes.split(","))),
        device=given.device,
        precisions=("fp32", "fp16" if given.device == "cuda" else "int8"),
        rounds=given.rounds,
    )
    gpu = torch.cuda.get_device_name(0) if given.device == "cuda" else None
    environment = describe_environment(options.threads, gpu=gpu)
    values = measure_peaks(options)
    cells = [[row["name"], number(row["flop_per_second"], "{:,.0f}", 1e-9)] for row in values]
    tables = [Section("The machine's practical peak", NOTE, ["model", "GFLOP/s"], cells)]
    rows = []
    for row in bench_inference(options, peers=peers):
        print(row, flush=True)
        rows.append(row)
    models = [row for row in rows if not row.name.startswith("matmul")]
    for row, plain in zip(models, without_matmuls(rows), strict=True):
        share = {"share_of_peak": share_of_peak(row, options.device)}
        values.append({**plain.to_dict(), **share} if share["share_of_peak"] else plain.to_dict())
    for section in sections(without_matmuls(rows)):
        backbone, _, title = section.title.partition(": ")
        if title == RATES:
            own = [row for row in models if (row.measure, row.backbone) == ("rate", backbone)]
            section = with_shares(section, own, options.device)
        tables.append(section)
    command = f"python benchmarks/inference_table.py {' '.join(sys.argv[1:])}"
    for path in write_report(given.out, "inference", command, environment, values, tables):
        print(f"Written: {path}")


if __name__ == "__main__":
    main()
