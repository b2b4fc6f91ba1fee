"""`pfedmma export --format open_clip`: a stock state dict, where a method folds into one."""

from __future__ import annotations

from typing import NoReturn

from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.methods.base import Method

__all__ = ["refuse_open_clip"]


def refuse_open_clip(method: Method) -> NoReturn:
    """Say why a method's clients cannot become plain open_clip weights; none of today's can.

    Raises:
        ExportError: always.
    """
    raise ExportError(
        f"The clients of {method.name} cannot be written as open_clip weights: its adapter "
        "computes s * up(relu(W relu(down(h)))) beside each block, and what passes a ReLU is no "
        "matrix that could be added to the block's own. Only adapters without one (LoRA) fold "
        "exactly. Export ONNX instead: `pfedmma export`, which serves all clients from one file."
    )
