"""The ONNX models of a bundle: exported from torch once, then brought into the form asked for."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.export import describe
from pfedmma_deploy.export.banks import client_banks, is_bank
from pfedmma_deploy.export.clients import (
    AdapterBanks,
    ExportClient,
    adapted_blocks,
    stack_banks,
)
from pfedmma_deploy.export.export_config import ExportConfig
from pfedmma_deploy.export.fusion import TowerShape, fuse
from pfedmma_deploy.export.graph import ClassifierGraph, ImageGraph, TextGraph
from pfedmma_deploy.export.onnx_file import to_bytes, to_onnx
from pfedmma_deploy.export.parts import stack_parts
from pfedmma_deploy.export.precision import halve_weights, to_half, to_int8
from pfedmma_deploy.runtime import bundle as names
from pfedmma_deploy.runtime.manifest import Manifest
from pfedmma_deploy.store.files import write_bytes
from pfedmma_deploy.types import TOWERS, Tower

if TYPE_CHECKING:
    import onnx

    from pfedmma_deploy.backbone.clip import Backbone

__all__ = [
    "Banks",
    "build_graphs",
    "portable_model",
    "reduced_model",
    "require_flavour",
    "stack",
    "write_fp32",
    "write_reduced",
]


@dataclass(frozen=True)
class Banks:
    """What all clients change, by tower."""

    beside: Mapping[Tower, Mapping[int, AdapterBanks]]
    """pFedMMA's adapter, by block."""
    parts: Mapping[Tower, Mapping[str, Tensor]]
    """Everything else, by bank."""


def require_flavour(form: ExportConfig, adapter: Mapping[str, Any]) -> None:
    """Raises `ExportError` where the clients' changes keep attention from being fused."""
    if form.flavour == "ort" and adapter["kind"] == "low-rank":
        raise ExportError(
            "--flavour ort fuses queries, keys and values into one operator, and clients of "
            f"{adapter['method']} change queries and values each on their own: add --flavour "
            "portable, which every precision has."
        )


def stack(
    clients: Sequence[ExportClient], backbone: Backbone, adapter: Mapping[str, Any]
) -> tuple[Banks, dict[str, Any]]:
    """The banks of all clients, and what the manifest says of them."""
    parts = stack_parts(clients)
    if "bottleneck_dim" not in adapter:
        return Banks({tower: {} for tower in TOWERS}, parts), dict(adapter)
    beside = stack_banks(clients, backbone, adapter["bottleneck_dim"])
    return Banks(beside, parts), {**adapter, "blocks": adapted_blocks(clients[0].tensors)}


def build_graphs(
    backbone: Backbone,
    banks: Banks,
    scale: float,
    *,
    text_embeds: Tensor | None,
    logit_scale: float,
) -> dict[str, nn.Module]:
    """The modules to export by file name; with `text_embeds` [clients, C, D] the classifier too."""
    image = ImageGraph(backbone, banks.beside["image"], scale, banks.parts["image"])
    graphs: dict[str, nn.Module] = {
        names.VISION_MODEL: image,
        names.TEXT_MODEL: TextGraph(backbone, banks.beside["text"], scale, banks.parts["text"]),
    }
    if text_embeds is not None:
        graphs[names.CLASSIFIER_MODEL] = ClassifierGraph(image, text_embeds, logit_scale)
    return graphs


def portable_model(
    name: str, graph: nn.Module, tokens: Tensor, images: NDArray[np.uint8]
) -> onnx.ModelProto:
    """One of the modules in standard operators, fp32."""
    if any(p.device.type != "cpu" for p in graph.parameters()):
        # The weights are the backbone's own, which stays where it is.
        graph = copy.deepcopy(graph).cpu()
    signature = describe.SIGNATURES[name]
    items = tokens[:1] if name == names.TEXT_MODEL else torch.from_numpy(images[:1])
    example = dict(
        zip(
            signature.inputs,
            (items.cpu().repeat_interleave(2, 0), torch.tensor([0, 1])),
            strict=True,
        )
    )
    banks = {key: value for key, value in graph.named_buffers() if is_bank(key)}
    with _told_apart(banks.values()):
        model = to_onnx(graph.eval(), example, signature.output, signature.axis)
    _fill_banks(model, banks)
    return model


@contextmanager
def _told_apart(banks: Iterable[Tensor]) -> Iterator[None]:
    """Give every bank values of its own: the exporter merges weights that happen to be equal.

    Biases that were never trained are, and a bank without a name of its own cannot take a client.
    """
    kept = [(bank, bank.clone()) for bank in banks]
    for number, (bank, _) in enumerate(kept, start=1):
        bank.fill_(number)
    try:
        yield
    finally:
        for bank, values in kept:
            bank.copy_(values)


def _fill_banks(model: onnx.ModelProto, banks: Mapping[str, Tensor]) -> None:
    """Put the true values of the banks into the model, by name."""
    from onnx import numpy_helper

    entries = {entry.name: entry for entry in model.graph.initializer}
    for name, values in banks.items():
        if name not in entries or list(entries[name].dims) != list(values.shape):
            raise ExportError(
                f"torch's exporter left no {name} in the model: torch 2.15 does; please report "
                "this with the version installed."
            )
        entries[name].CopyFrom(numpy_helper.from_array(values.cpu().numpy(), name))


def write_fp32(
    folder: Path, model: onnx.ModelProto, name: str, backbone: Backbone, manifest: Manifest
) -> None:
    """Write a portable model under `name`, fused first where the manifest says so."""
    if manifest.flavour == "ort":
        model = fuse(model, _shape(backbone, name, len(client_banks(model))))
    data = to_bytes(model, describe.metadata(manifest, name))
    write_bytes(folder / name, data)


def write_reduced(source: Path, out: Path, form: ExportConfig, manifest: Manifest) -> None:
    """Write the models of folder `source` to folder `out`, in the reduced precision asked for."""
    import onnx

    for file in sorted(source.glob("*.onnx")):
        model = reduced_model(onnx.load(file), form)
        data = to_bytes(model, describe.metadata(manifest, file.name))
        write_bytes(out / file.name, data)


def reduced_model(model: onnx.ModelProto, form: ExportConfig) -> onnx.ModelProto:
    """An fp32 model in the form's precision and storage."""
    if form.precision == "fp16":
        return to_half(model)
    if form.precision == "int8":
        model = to_int8(model)
    return halve_weights(model) if form.weights == "fp16" else model


def _shape(backbone: Backbone, name: str, banks: int) -> TowerShape:
    tower: Tower = "text" if name == names.TEXT_MODEL else "image"
    blocks = backbone.blocks(tower)
    return TowerShape(
        depth=len(blocks),
        width=backbone.width(tower),
        heads=int(blocks[0].attn.num_heads),
        quick_gelu=backbone.activation == "quick_gelu",
        is_causal=tower == "text",
        banks=banks,
    )
