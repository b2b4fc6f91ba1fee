"""Two clients of any method on a tiny backbone, trained by chance, as an export takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pfedmma_deploy.export.banks import ExportClient
from pfedmma_deploy.export.bundle import ExportReport, export_bundle
from pfedmma_deploy.export.export_config import ExportConfig
from pfedmma_deploy.methods.registry import METHODS, get_method
from pfedmma_deploy.methods.tap import ComponentAdapter
from tests.methods import inputs
from tests.tinyclip import tiny_backbone

EXPORTABLE = tuple(name for name, method in METHODS.items() if not method.export_blocker)


def clients_of(name: str, **parameters: Any) -> list[ExportClient]:
    """The clients "a" and "b"."""
    clients = []
    for seed, client in enumerate("ab", start=1):
        adapter = inputs.build(get_method(name), **parameters)
        generator = torch.Generator().manual_seed(seed)
        for value in adapter.parameters():
            if value.requires_grad:
                # Fresh adapters add nothing, and equal ones could be mixed up.
                value.data.add_(torch.randn(value.shape, generator=generator) * 0.3)
        if isinstance(adapter, ComponentAdapter):
            held = ("image/shared", "image/classify", "text/shared")
            adapter.held = held[: 4 - seed]
        clients.append(ExportClient(client, adapter.eval(), (0,)))
    return clients


def export_kind(
    out: Path, name: str, config: ExportConfig | None = None, **changes: Any
) -> ExportReport:
    """The bundle of those clients."""
    clients = clients_of(name)
    arguments: dict[str, Any] = {
        "class_names": inputs.NAMES,
        "prompt": inputs.TEMPLATE,
        "base": (0, 1),
        "novel": (2,),
        "method": name,
        "parity_images": inputs.pixels().numpy(),
        "provenance": {"run": "test"},
        "config": config or ExportConfig(flavour="portable"),
        **changes,
    }
    return export_bundle(tiny_backbone(), clients, out, **arguments)
