"""From a run to a verified ONNX bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pfedmma_deploy.export.banks import ExportClient as ExportClient
    from pfedmma_deploy.export.bundle import ExportReport as ExportReport
    from pfedmma_deploy.export.bundle import export_bundle as export_bundle
    from pfedmma_deploy.export.run import export_run as export_run

__all__ = ["ExportClient", "ExportReport", "export_bundle", "export_run"]

_MODULES = {
    "ExportClient": "banks",
    "ExportReport": "bundle",
    "export_bundle": "bundle",
    "export_run": "run",
}


def __getattr__(name: str) -> Any:
    """Import on first use: torch and onnx are loaded by those who export."""
    import importlib

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
