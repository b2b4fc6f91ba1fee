"""The `ort` flavour: a portable graph with ONNX Runtime's own fused operators in it.

One Attention per block (the last of an image tower excepted) instead of its three dozen nodes,
SkipLayerNormalization for the residual additions, BiasGelu or QuickGelu for the activation, by
`onnxruntime.transformers.optimizer`. What was fused is counted: that optimizer says nothing when a
pattern no longer fits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.export.banks import client_banks
from pfedmma_deploy.export.onnx_file import quiet_libraries

MASK = "mask"
"""Initializer that the text tower's causal mask has in the portable graph."""
DOMAIN = "com.microsoft"


@dataclass(frozen=True, slots=True)
class TowerShape:
    """What the fusion needs to know of a tower."""

    depth: int
    """Number of blocks."""
    width: int
    heads: int
    quick_gelu: bool
    is_causal: bool
    banks: int
    """Number of matrices that are gathered by client."""


def fuse(model: onnx.ModelProto, shape: TowerShape) -> onnx.ModelProto:
    """The same model with fused operators; every name of an adapter bank stays.

    The optimizer knows no causal mask that is a plain constant: the mask is taken out before, and
    the fused Attention does it itself (`unidirectional`).

    Raises:
        ExportError: an operator was not fused as often as there are blocks; with the counts.
    """
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_by_fusion

    if shape.is_causal:
        _drop_causal_mask(model.graph, shape.depth)
    producer = model.producer_name, model.producer_version
    inputs = list(model.graph.input)
    model.producer_name = ""  # it warns of any producer but torch's older exporter
    with quiet_libraries():
        fused: onnx.ModelProto = optimize_by_fusion(
            model, "clip", shape.heads, shape.width, FusionOptions("clip")
        ).model
    fused.producer_name, fused.producer_version = producer
    # It drops `client` from a tower in which clients change nothing.
    del fused.graph.input[:]
    fused.graph.input.extend(inputs)
    if all(entry.domain != DOMAIN for entry in fused.opset_import):
        fused.opset_import.add(domain=DOMAIN, version=1)
    if shape.is_causal:
        for node in fused.graph.node:
            if node.op_type == "Attention":
                # In place of the mask that was taken out; whether the attribute is there or not.
                kept = [entry for entry in node.attribute if entry.name != "unidirectional"]
                del node.attribute[:]
                node.attribute.extend([*kept, helper.make_attribute("unidirectional", 1)])
    require_fused(fused_counts(fused), shape)
    return fused


def fused_counts(model: onnx.ModelProto) -> dict[str, int]:
    """How often each operator is in the graph, and `banks`: matrices gathered by client."""
    counts = Counter(node.op_type for node in model.graph.node)
    return {**counts, "banks": len(client_banks(model))}


def require_fused(found: Mapping[str, int], shape: TowerShape) -> None:
    """Raises `ExportError` where an operator is missing, or a client's matrix got lost."""
    wanted = {
        # The last block of an image tower asks for the class token alone: no self-attention.
        "Attention": shape.depth if shape.is_causal else shape.depth - 1,
        # The first `ln_1` and the last norm skip nothing.
        "SkipLayerNormalization": 2 * shape.depth - 1,
        "QuickGelu" if shape.quick_gelu else "BiasGelu": shape.depth,
        "banks": shape.banks,
    }
    counts = {name: found.get(name, 0) for name in wanted}
    if counts != wanted:
        raise ExportError(
            f"ONNX Runtime's optimizer did not fuse the graph as it should: expected {wanted}, "
            f"found {counts}. Export with --flavour portable, or use onnxruntime 1.30 or 1.31."
        )


def _drop_causal_mask(graph: onnx.GraphProto, depth: int) -> None:
    """Take the additions of the causal mask out. The graph alone is wrong without it."""
    masks = [entry for entry in graph.initializer if entry.name == MASK]
    adds = [node for node in graph.node if node.op_type == "Add" and MASK in node.input]
    if len(masks) != 1 or len(adds) != depth:
        raise ExportError(
            f"The text tower adds {len(adds)} causal masks, expected one in each of {depth} "
            "blocks: export with --flavour portable."
        )
    values = numpy_helper.to_array(masks[0])
    if not np.array_equal(values, np.triu(np.full(values.shape, -np.inf, values.dtype), 1)):
        raise ExportError("The text tower's mask is not causal: export with --flavour portable.")
    unmasked = {add.output[0]: next(n for n in add.input if n != MASK) for add in adds}
    for add in adds:
        graph.node.remove(add)
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in unmasked:
                node.input[position] = unmasked[name]
    graph.initializer.remove(masks[0])
