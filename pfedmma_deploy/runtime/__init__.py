"""Prediction from an exported bundle: numpy and ONNX Runtime, never torch.

from pfedmma_deploy.runtime import Classifier

classifier = Classifier.load("exports/quickstart")
for prediction in classifier.predict(["cat.jpg"], client="3"):
    print(prediction.top[0].name, prediction.top[0].probability)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pfedmma_deploy.runtime.bundle import Bundle as Bundle
    from pfedmma_deploy.runtime.classifier import Classifier as Classifier
    from pfedmma_deploy.runtime.classifier import ClassScore as ClassScore
    from pfedmma_deploy.runtime.classifier import Prediction as Prediction

__all__ = ["Bundle", "ClassScore", "Classifier", "Prediction"]


def __getattr__(name: str) -> Any:
    """Import on first use: `import pfedmma_deploy.runtime` alone loads nothing heavy."""
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "bundle" if name == "Bundle" else "classifier"
    return getattr(import_module(f"{__name__}.{module}"), name)
