"""The published inference tables: those of `pfedmma bench`, with two peers more.

    python benchmarks/inference_table.py --backbone pfedmma-tiny,ViT-B-32,ViT-B-16 --rounds 3

torch.compile, which first compiles for a while; and a large matmul, the machine's practical peak,
in the same rounds as the models: a column says which share of it each of them reaches.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.backbone.flops import image_flop
from pfedmma_deploy.backbone.loading import backbone_shapes
from pfedmma_deploy.benchmark.inference import HOW, bench_inference, sections
from pfedmma_deploy.benchmark.options import InferenceOptions
from pfedmma_deploy.benchmark.report import Columns, Report, Row, make_section
from pfedmma_deploy.benchmark.subjects import DTYPES, Subject, plain_tower, run_torch
from pfedmma_deploy.system import describe_environment

SIZES = {"cpu": 2048, "cuda": 8192}
PRECISIONS = {"cpu": ("fp32",), "cuda": ("fp32", "fp16", "bf16")}
"""In which a share of the peak is taken. A CPU's fp16 and int8 matmuls differ too much between
libraries to be anybody's peak."""
NOTE = (
    "Rate of a large matmul (2,048 squared by ONNX Runtime on a CPU, 8,192 by torch on a GPU), in "
    "turns with the models. Shares of this peak below count the operations that each model does, "
    "adapters left out."
)
PEAK: Columns = {"matmul": ("name", 1), "GFLOP/s": ("flop_per_second", 1e-9)}
SHARE: Columns = {"% of peak": ("share_of_peak", 100)}


def torch_matmul(precision: str) -> Callable[[], object]:
    """One large matmul on the GPU by torch."""
    n = SIZES["cuda"]
    left, right = (torch.randn(n, n, device="cuda").to(DTYPES[precision]) for _ in range(2))

    def call() -> None:
        torch.mm(left, right)
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
    """torch.compile where this machine can, and the matmul that shares refer to."""
    return [*compiled_torch(backbone, options), *matmuls(options)]


def compiled_torch(backbone: Backbone, options: InferenceOptions) -> list[Subject]:
    """torch.compile, in bf16 on a GPU; none where it cannot compile here."""
    device = options.device
    precision = "bf16" if device == "cuda" else "fp32"
    tower = torch.compile(plain_tower(backbone, device, precision))
    compiled = run_torch(f"torch.compile {precision}", tower, backbone, device, precision)
    try:
        compiled.prepare(2)()
    except Exception as error:  # the compiler's exceptions have no common base
        print(f"torch.compile cannot compile here: {error}", file=sys.stderr)
        return []
    return [compiled]


def matmuls(options: InferenceOptions) -> list[Subject]:
    """A large matmul in each precision, in which a share of the peak is taken.

    On a CPU ONNX Runtime's: torch's and numpy's reach half of it on some processors, which would
    make every share look better than it is.
    """
    found = []
    for name in PRECISIONS[options.device]:
        call = torch_matmul(name) if options.device == "cuda" else onnx_matmul(options.threads)
        about = {"name": f"matmul {name}", "precision": name}
        found.append(Subject(about, lambda _, call=call: call))  # type: ignore[misc]
    return found


def compare_with_peak(rows: Sequence[Row], device: str) -> tuple[list[Row], list[Row]]:
    """The rows of models with their shares of the peak, 0 to 1; and the peaks, one row each.

    A share is the median ratio within the rounds. The matmuls do not appear among the models' rows
    and ratios.
    """
    matmul_flop = 2.0 * SIZES[device] ** 3
    models: list[Row] = []
    peaks: dict[str, Row] = {}
    for row in rows:
        name = row["name"]
        if name.startswith("matmul"):
            # A matmul was counted as one call on as many "images" as the batch has.
            rate = row["images_per_second"] / row["batch_size"] * matmul_flop
            peaks[name] = {"measure": "peak", "name": name, "precision": row["precision"]}
            peaks[name]["flop_per_second"] = rate
            continue
        model, ratios = dict(row), dict(row.get("ratios", {}))
        matmul = ratios.get(f"matmul {row['precision']}")
        for other in row.get("ratios", {}):
            if other.startswith("matmul"):
                del ratios[other]
        if ratios:
            model["ratios"] = ratios
        if matmul and row["measure"] == "rate":
            # An exported tower leaves out in its last block what cannot reach the class token.
            flop = image_flop(backbone_shapes(row["backbone"]), token_shortcuts="clients" in row)
            share = matmul["median"] * row["batch_size"] * flop / matmul_flop
            model["share_of_peak"] = share
        models.append(model)
    return models, list(peaks.values())


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
    rows = []
    for row in bench_inference(options, peers=peers):
        print(row, flush=True)
        rows.append(row)
    models, peaks = compare_with_peak(rows, options.device)
    command = f"python benchmarks/inference_table.py {' '.join(sys.argv[1:])}"
    tables = [make_section("The machine's practical peak", NOTE, PEAK, peaks)]
    tables += sections(models, SHARE)
    report = Report("inference", command, HOW, environment, [*peaks, *models], tables)
    print("Written:", *report.write(given.out))


if __name__ == "__main__":
    main()
