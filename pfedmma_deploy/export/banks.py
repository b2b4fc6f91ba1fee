"""The clients' banks: stacked for a graph that is exported, changed in a model that is finished.

A bank is an initializer `[clients + 1, ...]` of which the graph gathers the rows of the items'
clients. Row 0 is zero, which makes adapters add exactly nothing: client index 0 is the frozen CLIP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from pfedmma_deploy.adapters.base import Adapter, ExportBanks
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.runtime.bundle import CLASSIFIER_MODEL, TEXT_MODEL, VISION_MODEL
from pfedmma_deploy.runtime.manifest import ZERO_SHOT
from pfedmma_deploy.types import TOWERS, Tower

Array = NDArray[Any]
CLIENT_INPUT = "client"
STRENGTH_INPUT = "strength"
CLASSIFIER_TEXT = "text"
"""The classifier's own bank: scaled text features, [clients + 1, D, C]."""
TOWER_OF: Mapping[str, Tower] = {
    VISION_MODEL: "image",
    TEXT_MODEL: "text",
    CLASSIFIER_MODEL: "image",
}


@dataclass(frozen=True)
class ExportClient:
    """One client's own model, as the bundle takes it."""

    id: str
    adapter: Adapter
    """Trained, on the bundle's backbone: the graph is made of it and compared with it."""
    seen: Sequence[int] = ()
    """Labels that the client trained on."""
    default_strength: float = 1.0
    """At which it answers where nobody asks for another."""


def require_names(clients: Sequence[ExportClient]) -> None:
    """Raises `ExportError` where there is no client, two of one name, or one named zero-shot."""
    ids = [client.id for client in clients]
    for name in ids:
        if name == ZERO_SHOT or ids.count(name) > 1:
            why = "is the name of client 0" if name == ZERO_SHOT else "is there twice"
            raise ExportError(f"Client {name!r} {why}: every client needs a name of its own.")
    if not clients:
        raise ExportError("There is no client to export: train first, or name at least one.")


def require_strength(clients: Sequence[ExportClient]) -> None:
    """Raises `ExportError` where an adapter mixes class scores, which no graph does."""
    for client in clients:
        if client.adapter.interpolation == "scores":
            raise ExportError(
                f"The adapter of client {client.id!r}, {type(client.adapter).__name__}, mixes "
                "class scores, and a bundle's graphs give features: mix its features "
                '(`mix_features`) and say so (`interpolation = "features"`).'
            )


def stack_banks(
    clients: Sequence[ExportClient], backbone: Backbone
) -> dict[Tower, dict[str, nn.Module]]:
    """The modules that the towers' graphs take, by tower and place, with the banks of all clients.

    Raises:
        ExportError: clients that do not have the same tensors, or a tensor that is not finite.
    """
    each = []
    for client in clients:
        banks = client.adapter.export_banks(backbone)
        each.append({(one.tower, one.place): one for one in banks})
        for tower, place in sorted(each[-1].keys() - each[0].keys()):
            raise ExportError(
                f"The adapter of client {client.id!r} alone has {place} in the {tower} tower: all "
                "clients of a bundle need the same layers, on the same backbone."
            )
    found: dict[Tower, dict[str, nn.Module]] = {tower: {} for tower in TOWERS}
    for (tower, place), first in each[0].items():
        stacked = {}
        for name in first.rows:
            rows: list[Tensor] = []
            for client, own in zip(clients, each, strict=True):
                rows.append(_row(client, own.get((tower, place)), f"{place}.{name}", tower))
                if rows[-1].shape != rows[0].shape:
                    raise ExportError(
                        f"The adapter of client {client.id!r} has {place}.{name} of shape "
                        f"{list(rows[-1].shape)}, others {list(rows[0].shape)}: export clients of "
                        "one run."
                    )
            # Row 0: what changes nothing.
            stacked[name] = torch.stack([torch.zeros_like(rows[0]), *rows])
        found[tower][place] = first.build(stacked)
    return found


def _row(client: ExportClient, banks: ExportBanks | None, name: str, tower: Tower) -> Tensor:
    """A client's row of the bank `name`, fp32 in main memory. Raises `ExportError`."""
    key = name.rpartition(".")[2]
    if banks is None or key not in banks.rows:
        raise ExportError(
            f"The adapter of client {client.id!r} lacks {name} in the {tower} tower: "
            "all clients of a bundle need the same layers, on the same backbone."
        )
    row = banks.rows[key].detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(row).all()):
        raise ExportError(
            f"The adapter of client {client.id!r} has NaN or infinity in {name}: "
            "train the client again, with a lower learning rate."
        )
    return row


def client_rows(adapter: Adapter, backbone: Backbone) -> dict[Tower, dict[str, Array]]:
    """One client's row of every bank, fp32, by tower and the bank's name in that tower's model."""
    found: dict[Tower, dict[str, Array]] = {tower: {} for tower in TOWERS}
    # The names that the exporter gives to the buffers of `ExportBanks.build`.
    for banks in adapter.export_banks(backbone):
        for name, row in banks.rows.items():
            found[banks.tower][f"{banks.place}.{name}"] = row.float().contiguous().numpy()
    return found


def client_banks(model: onnx.ModelProto) -> list[str]:
    """Initializers of which a model gathers rows by client, in the graph's order."""
    made_by = {name: node for node in model.graph.node for name in node.output}

    def is_client(name: str) -> bool:
        # The exporter puts a Reshape or a Cast between the input and the Gather.
        while name in made_by:
            name = made_by[name].input[0]
        return name == CLIENT_INPUT

    gathered = set()
    for node in model.graph.node:
        if node.op_type == "Gather" and is_client(node.input[1]):
            gathered.add(node.input[0])
    return [entry.name for entry in model.graph.initializer if entry.name in gathered]


def replace_banks(model: onnx.ModelProto, change: Callable[[str, Array], Array]) -> None:
    """Put `change(name, values)` in the place of every bank of a finished model."""
    banks = set(client_banks(model))
    for entry in model.graph.initializer:
        if entry.name in banks:
            values = np.ascontiguousarray(change(entry.name, numpy_helper.to_array(entry)))
            entry.CopyFrom(numpy_helper.from_array(values, entry.name))
    for given in model.graph.input:
        if given.name in banks:
            # An input with a default: as many rows as the default has.
            value = next(entry for entry in model.graph.initializer if entry.name == given.name)
            given.type.tensor_type.shape.dim[0].dim_value = value.dims[0]
    # Shapes of inner values that were noted for the old number of clients.
    del model.graph.value_info[:]
