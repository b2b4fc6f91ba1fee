"""From a torch module to one self-contained ONNX file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from pfedmma_deploy.errors import ExportError

OPSET = 18
"""What torch's exporter writes without a conversion, and what runtimes of early 2023 read: 20 has
`Gelu`, which many do not know, and saves nothing (exports/README.md, "Other runtimes")."""
LARGEST = (1 << 31) - (1 << 20)
"""A protobuf file ends at 2 GiB; weights beside the file get lost on downloads."""
LARGEST_BATCH = 1 << 16


def to_onnx(
    module: nn.Module,
    example: Mapping[str, Tensor],
    output: str,
    axis: str,
) -> onnx.ModelProto:
    """Export `module`, called with `example`, with a first dimension of any length.

    Args:
        module: in evaluation mode; takes the tensors of `example` in their order.
        example: inputs by name, of two items or more (torch would fix a length of one).
        output: name of the only output.
        axis: name of the first dimension of every input and of the output.

    Raises:
        ExportError: the file would be larger than protobuf can hold.
    """
    size = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
    if size > LARGEST:
        raise ExportError(
            f"The model for {output} would have {size / 1e9:.1f} GB, one ONNX file holds 2.1: "
            "export fewer clients, or use a smaller backbone."
        )
    length = torch.export.Dim(axis, min=1, max=LARGEST_BATCH)
    with quiet_libraries(), torch.no_grad():
        program = torch.onnx.export(
            module,
            tuple(example.values()),
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            input_names=list(example),
            output_names=[output],
            dynamic_shapes={name: {0: length} for name in example},
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    _clean(model)
    return model


def to_bytes(model: onnx.ModelProto, metadata: Mapping[str, str]) -> bytes:
    """The model as the content of a file, with `metadata` and nothing else in `metadata_props`."""
    del model.metadata_props[:]
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return bytes(model.SerializeToString(deterministic=True))


def _clean(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes: source paths of this machine, and a third of a small file."""
    graph = model.graph
    entries: list[Any] = [model, graph, *graph.node, *graph.input, *graph.output]
    for entry in (*entries, *graph.value_info, *graph.initializer):
        entry.ClearField("metadata_props")
        entry.ClearField("doc_string")
    del model.functions[:]
    # The exporter writes the newest file version that it knows; older runtimes refuse that.
    model.ir_version = helper.find_min_ir_version_for(list(model.opset_import))


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without remarks about the libraries' own internals, different with every release."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
