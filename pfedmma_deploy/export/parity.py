"""Is the exported model the trained model? Measured before a bundle gets its name.

Structure by onnx.checker; names, shapes and dtypes of inputs and outputs; values against torch, for
every client and for a batch that mixes all of them; and whether both choose the same class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.errors import ExportError

if TYPE_CHECKING:
    import onnxruntime

TOLERANCE = 1e-4
"""Largest accepted difference of one number of an L2-normalised fp32 feature."""
LEAST_AGREEMENT = 99.0
"""Percent of the images for which both must choose the same class."""
BATCH = 64

Signature = Mapping[str, tuple[str, Sequence[int | str]]]
"""Name -> (ONNX Runtime's type, shape; a text where any length goes)."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far the exported model is from the trained one."""

    max_abs_error: float
    """Largest difference of one number of a feature, images and texts, any client."""
    top1_agreement: float
    """Percent of (image, client) pairs for which both choose the same class."""
    images: int
    """(image, client) pairs compared, the mixed batch included."""

    def to_dict(self) -> dict[str, float | int]:
        """JSON-ready."""
        return asdict(self)


def check_model(file: Path, inputs: Signature, output: Signature) -> onnxruntime.InferenceSession:
    """Structure and signature of an ONNX file; returns a CPU session for it.

    Raises:
        ExportError: the file is no valid model, or its inputs or output are not as documented.
    """
    import onnx
    import onnxruntime

    try:
        onnx.checker.check_model(str(file), full_check=True)
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    except Exception as error:  # neither library has a common base for its exceptions
        raise ExportError(f"{file.name} is not a valid ONNX model: {error}") from error
    for what, nodes, expected in (
        ("inputs", session.get_inputs(), inputs),
        ("output", session.get_outputs(), output),
    ):
        found = {node.name: (node.type, list(node.shape)) for node in nodes}
        wanted = {name: (kind, list(shape)) for name, (kind, shape) in expected.items()}
        if found != wanted:
            raise ExportError(f"{file.name} has the {what} {found}, expected {wanted}.")
    return session


def sampled(items: int, clients: int, budget: int = 512) -> NDArray[np.int64]:
    """Which items each client is checked on, [clients, share]: all, or a share that rolls on."""
    share = max(1, min(items, budget // clients))
    starts: NDArray[np.int64] = np.arange(clients)[:, None] * share
    return (starts + np.arange(share)) % items


def run_clients(
    session: onnxruntime.InferenceSession,
    items: NDArray[Any],
    clients: NDArray[np.int64],
) -> NDArray[np.float32]:
    """The only output of a model for `items` [N, ...], each with its own client, in batches."""
    first, second = (node.name for node in session.get_inputs())
    found = []
    for start in range(0, len(items), BATCH):
        rows = slice(start, start + BATCH)
        found += session.run(None, {first: items[rows], second: clients[rows]})
    return np.concatenate(found)


def cosines(
    features: NDArray[np.float32], text: NDArray[np.float32], clients: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Cosines [N, C] of image features [N, D] with their clients' own texts [clients, C, D]."""
    found = np.empty((len(features), text.shape[1]), np.float32)
    for client in np.unique(clients):
        rows = clients == client
        found[rows] = features[rows] @ text[client].T
    return found


def compare(
    exported: NDArray[np.float32],
    trained: NDArray[np.float32],
    text: NDArray[np.float32],
    clients: NDArray[np.int64],
    text_error: float,
    tolerance: float = TOLERANCE,
    least_agreement: float = LEAST_AGREEMENT,
) -> Parity:
    """Compare the image features of both sides, and the classes that they lead to.

    Args:
        exported: image features by the exported model, [N, D].
        trained: the same by torch, [N, D].
        text: text features of the classes, [clients, C, D]: by torch, as the bundle stores them.
        clients: client index of every row, [N].
        text_error: largest difference found between the text towers.
        tolerance: largest accepted absolute difference.
        least_agreement: percent of the images for which both must choose the same class.

    Raises:
        ExportError: the exported model differs by more than the tolerance; with the figures.
    """
    # numpy's max, because Python's may drop a NaN.
    error = float(np.max([largest_difference(exported, trained), text_error]))
    ours, theirs = cosines(exported, text, clients), cosines(trained, text, clients)
    agreement = 100.0 * float((ours.argmax(1) == theirs.argmax(1)).mean())
    parity = Parity(error, agreement, len(clients))
    # Written so that NaN does not pass.
    if not error <= tolerance or not agreement >= least_agreement:
        raise ExportError(
            f"The exported model is not the trained one: largest difference {error:.2e} "
            f"(accepted {tolerance:.0e}), same class for {agreement:.1f} % of {len(clients)} "
            f"images (accepted {least_agreement:.0f} %). Nothing was written; please report this "
            "with the name of the backbone."
        )
    return parity


def largest_difference(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    """Of two arrays of one shape; NaN where either has one."""
    return float(np.abs(left.astype(np.float64) - right).max())
