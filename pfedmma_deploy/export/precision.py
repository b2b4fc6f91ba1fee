"""Smaller and faster forms of an exported model: fp16, int8, and weights stored in half precision.

All keep the signature (uint8 or int64 in, fp32 out) and the names of the adapter banks. None is as
exact as fp32: `pfedmma_deploy.export.quality` decides whether it is good enough.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.export.banks import STRENGTH_INPUT
from pfedmma_deploy.export.onnx_file import quiet_libraries

HEADS = frozenset({"projection", "image.projection"})
"""Initializer that maps a tower's last token to the joint space (the second is the classifier's);
what follows it normalises."""
SMALLEST_HALVED = 1024
"""Weights with fewer numbers stay fp32: they cost nothing, and some of them are scales."""


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights and compute in fp16, for GPUs.

    Pixels are normalised in fp32 (a pixel's deviation would lose a third of its digits), and so
    are the features (their squares may leave fp16's range) and the class scores.
    """
    graph = model.graph
    _name_nodes(graph)
    amounts = _of_strength(graph)
    exact = _with_sources([*_before_patches(graph), *_after_head(graph), *amounts], graph)
    kept = {node.name for node in exact}
    full = {STRENGTH_INPUT, *(name for node in amounts for name in node.output)}
    # What both sides read is there twice: these keep the full one.
    read = {name for node in exact for name in node.input}
    nodes: list[onnx.NodeProto] = []
    halved: set[str] = set()
    cast: set[str] = set()
    floats = {e.name for e in graph.initializer if e.data_type == TensorProto.FLOAT}
    for node in graph.node:
        if node.name in kept:
            nodes.append(node)
            continue
        if node.op_type == "Conv" and node.input[0] not in floats:
            nodes.append(_half(node.input[0]))
            node.input[0] = f"{node.input[0]}.fp16"
        for position, name in enumerate(node.input):
            if name in full:
                node.input[position] = f"{name}.fp16"
                if name not in cast:
                    cast.add(name)
                    nodes.append(_half(name))
            if name in floats:
                halved.add(name)
                node.input[position] = f"{name}.fp16" if name in read else name
        nodes.append(node)
        if HEADS & set(node.input):
            feature, half = node.output[0], f"{node.output[0]}.fp16"
            node.output[0] = half
            nodes.append(helper.make_node("Cast", [half], [feature], to=TensorProto.FLOAT))
    _halve_initializers(graph, halved, shared=read)
    return _with_nodes(model, nodes)


def _half(name: str) -> onnx.NodeProto:
    """A node that makes `{name}.fp16` of a value."""
    return helper.make_node("Cast", [name], [f"{name}.fp16"], to=TensorProto.FLOAT16)


def _halve_initializers(
    graph: onnx.GraphProto, names: Collection[str], shared: Collection[str]
) -> None:
    """These weights in fp16; of those in `shared` a copy, `{name}.fp16`, beside the full one."""
    for entry in [e for e in graph.initializer if e.name in names]:
        values = numpy_helper.to_array(entry).astype(np.float16)
        if entry.name in shared:
            graph.initializer.append(numpy_helper.from_array(values, f"{entry.name}.fp16"))
        else:
            entry.CopyFrom(numpy_helper.from_array(values, entry.name))


def to_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """Matmuls of the blocks in int8, for CPUs: weights per channel, activations dynamic.

    The patch embedding, the adapters and the projection into the joint space stay fp32. Weights
    take 7 bits, because the 8-bit products of CPUs without VNNI saturate: one file gives the same
    answers on both kinds.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    _name_nodes(model.graph)
    head = [node.name for node in _after_head(model.graph, with_head=True)]
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        out = Path(folder) / "int8.onnx"
        quantize_dynamic(
            model,
            out,
            op_types_to_quantize=["MatMul", "Attention"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=head,
        )
        quantized = onnx.load(out)
    if not any(node.op_type in {"MatMulInteger", "QAttention"} for node in quantized.graph.node):
        raise ExportError("Nothing was quantized: export with --precision fp32.")
    return quantized


def halve_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Large weights stored as fp16 and computed with as fp32: half the file.

    ONNX Runtime converts matrices once, when it loads the file. Tables that a Gather reads (the
    token embedding, the adapter banks) stay fp16 in memory: only the rows read are converted.
    """
    graph = model.graph
    halved = set()
    for entry in graph.initializer:
        if entry.data_type == TensorProto.FLOAT and len(entry.dims) > 1:
            values = numpy_helper.to_array(entry)
            if values.size >= SMALLEST_HALVED:
                entry.CopyFrom(numpy_helper.from_array(values.astype(np.float16), entry.name))
                halved.add(entry.name)
    nodes: list[onnx.NodeProto] = []
    converted = set()
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] in halved:
            rows, full = f"{node.output[0]}.fp16", node.output[0]
            node.output[0] = rows
            nodes += [node, helper.make_node("Cast", [rows], [full], to=TensorProto.FLOAT)]
            continue
        for position, name in enumerate(node.input):
            if name in halved:
                node.input[position] = f"{name}.fp32"
                if name not in converted:
                    converted.add(name)
                    nodes.append(
                        helper.make_node("Cast", [name], [f"{name}.fp32"], to=TensorProto.FLOAT)
                    )
        nodes.append(node)
    return _with_nodes(model, nodes)


def _with_nodes(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
    """The model with other nodes. What was noted of its inner types holds no longer."""
    del model.graph.node[:]
    del model.graph.value_info[:]
    model.graph.node.extend(nodes)
    return model


def _before_patches(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Nodes from the pixels to the patch embedding, without it; none in a text tower."""
    found: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "Conv":
            return found
        found.append(node)
    return []


def _after_head(graph: onnx.GraphProto, *, with_head: bool = False) -> list[onnx.NodeProto]:
    """Nodes that follow the projection into the joint space."""
    reached, found = set(HEADS), []
    for node in graph.node:
        if reached & set(node.input):
            reached.update(node.output)
            if with_head or not HEADS & set(node.input):
                found.append(node)
    if not found:
        raise ExportError("The model has no projection: export with --precision fp32.")
    return found


def _of_strength(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Nodes that compute with the strength and constants alone: numbers per item, not per token."""
    constants = {entry.name for entry in graph.initializer}
    reached, found = {STRENGTH_INPUT}, []
    for node in graph.node:
        read = set(node.input) - constants
        if read and read <= reached:
            reached.update(node.output)
            found.append(node)
    return found


def _with_sources(nodes: Sequence[onnx.NodeProto], graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """These nodes and what they read, up to the projection: what is gathered by client for them."""
    made_by = {name: node for node in graph.node for name in node.output}
    found = {node.name: node for node in nodes}
    waiting = list(nodes)
    while waiting:
        for name in waiting.pop().input:
            source = made_by.get(name)
            if source is not None and source.name not in found and not HEADS & set(source.input):
                found[source.name] = source
                waiting.append(source)
    return list(found.values())


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Every node gets a name of its own, by which the libraries are told to leave it alone."""
    for number, node in enumerate(graph.node):
        node.name = node.name or f"node_{number}"
