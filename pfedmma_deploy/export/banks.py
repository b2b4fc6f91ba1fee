"""The adapter banks inside finished ONNX models: rows appended and removed, and where they act."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.adapters.graph_form import BANK, is_part
from pfedmma_deploy.types import Tower

if TYPE_CHECKING:
    import onnx

    from pfedmma_deploy.runtime.manifest import Manifest

__all__ = [
    "Port",
    "adapted",
    "append_row",
    "bank_row",
    "bank_shapes",
    "client_banks",
    "is_bank",
    "ports",
    "remove_row",
    "tensor_name",
]

_BANK = re.compile(r"(?:image\.)?blocks\.(\d+)\.adapter\.((?:down|pair|up)_(?:weight|bias))")
CLASSIFIER_TEXT = "text"
"""Initializer of the classifier: scaled text features, [clients, D, C]."""
Array = NDArray[Any]


def is_bank(name: str) -> bool:
    """Whether an initializer of this name holds what clients trained, one row for each."""
    return (_BANK.fullmatch(name) or BANK.fullmatch(name.removeprefix("image."))) is not None


def client_banks(model: onnx.ModelProto) -> list[str]:
    """Banks of which the graph gathers rows, in the graph's order."""
    gathered = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    names = [entry.name for entry in model.graph.initializer if is_bank(entry.name)]
    return [name for name in names if name in gathered]


@dataclass(frozen=True, slots=True)
class Port:
    """Names of one block's adapter input h and output a inside a graph."""

    block: int
    source: str
    added: str


def adapted(manifest: Manifest, tower: Tower) -> Sequence[int]:
    """Blocks of a tower that have pFedMMA's adapter; none where clients have something else."""
    blocks: Sequence[int] = manifest.adapter.get("blocks", {}).get(tower, ())
    return blocks


def tensor_name(tower: Tower, bank: str, blocks: Sequence[int]) -> str | None:
    """The client's tensor that a bank is made of, such as `image.5.down.weight`; None: no bank."""
    match = _BANK.fullmatch(bank)
    if match is None:
        own = bank.removeprefix("image.")
        return f"{tower}.{own}" if BANK.fullmatch(own) else None
    block, (layer, kind) = int(match[1]), match[2].split("_")
    return (
        f"pair.{blocks.index(block)}.{kind}"
        if layer == "pair"
        else f"{tower}.{block}.{layer}.{kind}"
    )


def bank_shapes(
    model: onnx.ModelProto, tower: Tower, blocks: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every client's tensor that the banks of a model are made of."""
    shapes: dict[str, tuple[int, ...]] = {}
    for entry in model.graph.initializer:
        name = tensor_name(tower, entry.name, blocks)
        if name is None:
            continue
        _, *dims = entry.dims
        if not is_part(name):
            dims = dims[::-1] if name.endswith("weight") else dims[1:]
        shapes[name] = tuple(dims)
    return shapes


def bank_row(name: str, tensor: Array) -> Array:
    """One client's row [1, ...] of a bank: weights as `h @ weight` takes them."""
    if is_part(name):
        return tensor[None]
    return tensor.T[None] if name.endswith("weight") else tensor[None, None]


def append_row(
    model: onnx.ModelProto,
    tower: Tower,
    blocks: Sequence[int],
    tensors: Mapping[str, Array],
    text: Array | None = None,
) -> None:
    """Append a client to every bank; `text` [D, C] is its row of a classifier's text features."""

    def longer(name: str, values: Array) -> Array | None:
        source = tensor_name(tower, name, blocks)
        if source is not None:
            row = bank_row(source, tensors[source])
        elif name == CLASSIFIER_TEXT and text is not None:
            row = text[None]
        else:
            return None
        return np.concatenate([values, row.astype(values.dtype)])

    _change(model, longer)


def remove_row(model: onnx.ModelProto, index: int) -> None:
    """Take one client out of every bank, and out of a classifier's text features."""

    def shorter(name: str, values: Array) -> Array | None:
        is_text = name == CLASSIFIER_TEXT and values.ndim == 3
        return np.delete(values, index, 0) if is_bank(name) or is_text else None

    _change(model, shorter)


def _change(model: onnx.ModelProto, change: Any) -> None:
    from onnx import numpy_helper

    for entry in model.graph.initializer:
        values = change(entry.name, numpy_helper.to_array(entry))
        if values is not None:
            entry.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), entry.name))
    # Shapes of inner values that were noted for the old number of clients.
    del model.graph.value_info[:]


def ports(model: onnx.ModelProto) -> list[Port]:
    """Where each adapter reads and what it adds, found from its banks."""
    graph = model.graph
    read = {name: node for node in graph.node for name in node.input}
    rows: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "Gather" and _BANK.fullmatch(node.input[0]):
            out = node.output[0]
            # Halved banks are converted behind the Gather.
            rows[node.input[0]] = read[out].output[0] if read[out].op_type == "Cast" else out
    found = []
    for bank, row in rows.items():
        match = _BANK.fullmatch(bank)
        assert match is not None
        if match[2] == "down_weight":
            last = rows[bank.replace("down_weight", "up_bias")]
            scaled = read[read[last].output[0]]
            found.append(Port(int(match[1]), read[row].input[0], scaled.output[0]))
    return found
