"""The ONNX models of a bundle: exported from torch once, then fused or made smaller."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from pfedmma_deploy.adapters.base import BankModule
from pfedmma_deploy.backbone.clip import Backbone
from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.export import describe
from pfedmma_deploy.export.banks import (
    CLIENT_INPUT,
    STRENGTH_INPUT,
    TOWER_OF,
    ExportClient,
    client_banks,
    stack_banks,
)
from pfedmma_deploy.export.certainty import Calibrations, add_certainty
from pfedmma_deploy.export.export_config import ExportConfig
from pfedmma_deploy.export.fusion import TowerShape, fuse
from pfedmma_deploy.export.graph import ImageGraph, TextGraph
from pfedmma_deploy.export.onnx_file import to_bytes, to_onnx
from pfedmma_deploy.export.precision import halve_weights, to_half, to_int8
from pfedmma_deploy.runtime import bundle as names
from pfedmma_deploy.runtime.manifest import Manifest
from pfedmma_deploy.store.files import write_bytes


def require_flavour(
    config: ExportConfig, method: str, clients: Sequence[ExportClient], backbone: Backbone
) -> None:
    """Raises `ExportError` where the clients' changes keep attention from being fused."""
    banks = clients[0].adapter.export_banks(backbone) if config.flavour == "ort" else ()
    if any(one.place.endswith(".low_rank") for one in banks):
        raise ExportError(
            "--flavour ort fuses queries, keys and values into one operator, and clients of "
            f"{method} change queries and values each on their own: add --flavour portable, which "
            "every precision has."
        )


def build_graphs(clients: Sequence[ExportClient], backbone: Backbone) -> dict[str, nn.Module]:
    """The towers to export by file name.

    Raises:
        ExportError: clients that do not have the same tensors, or sit where the backbone has no
            blocks.
    """
    places = stack_banks(clients, backbone)
    return {
        names.VISION_MODEL: ImageGraph(backbone, places["image"]),
        names.TEXT_MODEL: TextGraph(backbone, places["text"]),
    }


def portable_model(
    name: str, graph: nn.Module, tokens: Tensor, images: NDArray[np.uint8]
) -> onnx.ModelProto:
    """One of the modules in standard operators, fp32."""
    if any(p.device.type != "cpu" for p in graph.parameters()):
        # The weights are the backbone's own, which stays where it is.
        graph = copy.deepcopy(graph).cpu()
    signature = describe.SIGNATURES[name]
    items = tokens[:1] if name == names.TEXT_MODEL else torch.from_numpy(images[:1])
    # Two items, because torch would take a first dimension of one for a constant.
    example = {
        signature.items: items.cpu().repeat_interleave(2, 0),
        CLIENT_INPUT: torch.tensor([0, 1]),
        STRENGTH_INPUT: torch.ones(2),
    }
    banks = {}
    for path, module in graph.named_modules():
        if isinstance(module, BankModule):
            for key, value in module.named_buffers():
                banks[f"{path}.{key}"] = value
    # The exporter merges weights that happen to be equal, as biases are that were never trained;
    # but a bank without a name of its own cannot take a client. So each is filled with a number.
    kept = [bank.clone() for bank in banks.values()]
    for number, bank in enumerate(banks.values(), start=1):
        bank.fill_(number)
    try:
        model = to_onnx(graph.eval(), example, signature.output, signature.axis)
    finally:
        for bank, values in zip(banks.values(), kept, strict=True):
            bank.copy_(values)
    entries = {entry.name: entry for entry in model.graph.initializer}
    for key, bank in banks.items():
        if key not in entries or list(entries[key].dims) != list(bank.shape):
            raise ExportError(
                f"torch's exporter left no {key} in the model: torch 2.15 does; please report "
                "this with the version installed."
            )
        entries[key].CopyFrom(numpy_helper.from_array(bank.cpu().numpy(), key))
    return model


def write_fp32(
    folder: Path,
    model: onnx.ModelProto,
    name: str,
    backbone: Backbone,
    manifest: Manifest,
    calibrations: Calibrations | None = None,
) -> None:
    """Write a portable model under `name`, fused first where the manifest says so.

    The classifier also gets the clients' `calibrations`, where there are any.
    """
    if manifest.flavour == "ort":
        tower = TOWER_OF[name]
        blocks = backbone.blocks(tower)
        shape = TowerShape(
            depth=len(blocks),
            width=backbone.width(tower),
            heads=int(blocks[0].attn.num_heads),
            quick_gelu=backbone.activation == "quick_gelu",
            is_causal=tower == "text",
            banks=len(client_banks(model)),
        )
        model = fuse(model, shape)
    if calibrations is not None and name == names.CLASSIFIER_MODEL:
        add_certainty(model, calibrations, manifest.logit_scale)
    data = to_bytes(model, describe.metadata(manifest, name))
    write_bytes(folder / name, data)


def write_reduced(source: Path, out: Path, config: ExportConfig, manifest: Manifest) -> None:
    """Write the models of folder `source` to folder `out`, in reduced precision."""
    for file in sorted(source.glob("*.onnx")):
        model = reduced_model(onnx.load(file), config)
        data = to_bytes(model, describe.metadata(manifest, file.name))
        write_bytes(out / file.name, data)


def reduced_model(model: onnx.ModelProto, config: ExportConfig) -> onnx.ModelProto:
    """An fp32 model in the precision and storage asked for."""
    if config.precision == "fp16":
        return to_half(model)
    if config.precision == "int8":
        model = to_int8(model)
    return halve_weights(model) if config.weights == "fp16" else model
