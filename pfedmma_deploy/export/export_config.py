"""How a bundle's models are written: operators, arithmetic, storage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pfedmma_deploy.errors import UsageError

Flavour = Literal["ort", "portable"]
Precision = Literal["fp32", "fp16", "int8"]
Storage = Literal["fp32", "fp16"]


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """Raises `UsageError` on a value that there is not."""

    flavour: Flavour = "portable"
    """`ort`: ONNX Runtime's fused operators; `portable`: standard operators for any runtime."""
    precision: Precision = "fp32"
    """Arithmetic: `fp16` for GPUs, `int8` for CPUs."""
    weights: Storage = "fp32"
    """How weights that are not int8 are stored; `fp16` is half the file, computed with as fp32."""
    max_accuracy_drop: float = 0.5
    """Percentage points of accuracy that models in reduced precision may lose."""

    def __post_init__(self) -> None:
        for name, kind in (("flavour", Flavour), ("precision", Precision), ("weights", Storage)):
            value, known = getattr(self, name), get_args(kind)
            if value not in known:
                raise UsageError(f"{name} must be one of {', '.join(known)}, not {value!r}")
        if not 0 <= self.max_accuracy_drop <= 100:
            raise UsageError(
                f"max_accuracy_drop must be between 0 and 100 points, not {self.max_accuracy_drop}"
            )

    @property
    def is_exact(self) -> bool:
        """Whether the models compute what the trained one does, up to rounding in fp32."""
        return self.precision == "fp32" and self.weights == "fp32"


def default_flavour(precision: Precision) -> Flavour:
    """The flavour where none is asked for: fused for fp16, which is for GPUs, else portable.

    ONNX Runtime's CPU kernel for SkipLayerNormalization is slower than the operators it replaces
    (exports/README.md has the figures), and the portable graph runs everywhere.
    """
    return "ort" if precision == "fp16" else "portable"
