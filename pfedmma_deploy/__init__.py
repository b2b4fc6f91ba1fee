"""Personalized federated fine-tuning of CLIP, exported to ONNX and served without torch.

    from pfedmma_deploy import Classifier, evaluate, export, personalize, train

    result = train("photos", backbone="pfedmma-tiny", preset="quickstart", clients=3)
    personalize(result.run, "1")
    report = export(result.run)
    answers = Classifier.load(report.bundle).predict(["photo.jpg"], client="1")

Importing this package is cheap: torch, open_clip and ONNX Runtime are loaded with the names that
need them, when those are used; `Classifier` never needs torch. docs/python.md has more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pfedmma_deploy.api import evaluate as evaluate
    from pfedmma_deploy.api import train as train
    from pfedmma_deploy.data.items import ItemDataset as ItemDataset
    from pfedmma_deploy.data.registry import register_dataset as register_dataset
    from pfedmma_deploy.export import export as export
    from pfedmma_deploy.federated.personalize import personalize as personalize
    from pfedmma_deploy.methods.base import Method as Method
    from pfedmma_deploy.methods.registry import register_method as register_method
    from pfedmma_deploy.runtime.classifier import Classifier as Classifier
    from pfedmma_deploy.types import Dataset as Dataset

__version__ = "0.1.0"

_PLACES = {
    "Classifier": "runtime.classifier",
    "Dataset": "types",
    "ItemDataset": "data.items",
    "Method": "methods.base",
    "evaluate": "api",
    "personalize": "federated.personalize",
    "register_dataset": "data.registry",
    "register_method": "methods.registry",
    "train": "api",
}
__all__ = ["__version__", "export", *_PLACES]


if not TYPE_CHECKING:  # or type checkers would take any name for a public one

    def __getattr__(name: str) -> Any:
        """Import on first use."""
        from importlib import import_module

        if name == "export":
            # The package, which can be called (see there why).
            return import_module(f"{__name__}.export")
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
