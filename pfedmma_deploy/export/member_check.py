"""Is a client that was added to a finished bundle computed right, and are the others unchanged?

No torch and no run is at hand then. The frozen trunk was compared with torch when the bundle was
made; what is new is one row in the banks. So what each adapter adds is compared, block by block,
with the equation in float64 from the client's own files, on the activations that it really sees;
of everything that is not pFedMMA's adapter the row is read back. The other clients' features must
stay what they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.adapters.graph_form import is_part
from pfedmma_deploy.data.datasets import load_dataset
from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.export.banks import adapted, ports, tensor_name
from pfedmma_deploy.export.parity import run_clients
from pfedmma_deploy.runtime.manifest import Manifest
from pfedmma_deploy.runtime.sources import load_pixels
from pfedmma_deploy.types import Tower

__all__ = ["adapter_error", "check_images", "how", "require_unchanged", "row_error"]

EQUATION = "what each adapter adds, against the equation in numpy (float64)"
ROWS = "the client's rows, read back from the models, against its own files"
IMAGES = 8
UNCHANGED = 1e-5
EXACT, HALVED, HALF = 1e-4, 2e-3, 2e-2
"""Accepted difference as a share of the largest number added: in fp32, with weights stored in fp16,
with fp16 arithmetic."""


def how(manifest: Manifest) -> str:
    """What an added client is checked by."""
    return EQUATION if "blocks" in manifest.adapter else ROWS


def check_images(manifest: Manifest) -> NDArray[np.uint8]:
    """Real images from the sample in the package, uint8 [N, H, W, 3] at the model's size."""
    dataset = load_dataset("cifar10-sample", verify=False)
    step = max(1, len(dataset.examples) // IMAGES)
    chosen = dataset.examples[::step][:IMAGES]
    pixels = [load_pixels(dataset.open_image(one), manifest.preprocessing) for one in chosen]
    return np.stack(pixels)


def require_unchanged(
    before: Path, after: Path, items: NDArray[Any], rows: Mapping[int, int]
) -> None:
    """Raises `ExportError` where a client's features changed; `rows` is old index -> new index."""
    old, new = _session(before.read_bytes()), _session(after.read_bytes())
    for left, right in rows.items():
        expected = run_clients(old, items, np.full(len(items), left))
        found = run_clients(new, items, np.full(len(items), right))
        error = float(np.abs(expected - found).max())
        if not error <= UNCHANGED:
            raise ExportError(
                f"{after.name}: the features of client number {left} would change by {error:.1e}. "
                "Nothing was written; please report this."
            )


def adapter_error(
    file: Path,
    tower: Tower,
    items: NDArray[Any],
    client: int,
    tensors: Mapping[str, NDArray[Any]],
    manifest: Manifest,
) -> float:
    """Largest difference of what the adapters add, as a share of the largest number added.

    Raises:
        ExportError: it is more than the precision explains.
    """
    import onnx

    model = onnx.load(file)
    found = ports(model)
    blocks = adapted(manifest, tower)
    if sorted(port.block for port in found) != sorted(blocks):
        raise ExportError(f"{file.name} does not have the adapters that its manifest names.")
    if not found:
        return 0.0
    del model.graph.output[:]
    wanted = [name for port in found for name in (port.source, port.added)]
    for name in wanted:
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    session = _session(model.SerializeToString())
    first, second = (node.name for node in session.get_inputs())
    values = session.run(wanted, {first: items, second: np.full(len(items), client)})
    worst = 0.0
    for port, h, added in zip(found, values[::2], values[1::2], strict=True):
        expected = _equation(h, tower, port.block, blocks.index(port.block), tensors, manifest)
        worst = float(np.max([worst, _share(added, expected)]))
    accepted = HALF if manifest.precision == "fp16" else EXACT
    if manifest.weights == "fp16":
        accepted = max(accepted, HALVED)
    if not worst <= accepted:
        raise ExportError(
            f"{file.name} does not compute the added client: what its adapters add differs by "
            f"{worst:.1e} of the largest number (accepted {accepted:.0e}). "
            "Nothing was written; please report this."
        )
    return worst


def row_error(
    file: Path,
    tower: Tower,
    items: NDArray[Any],
    client: int,
    tensors: Mapping[str, NDArray[Any]],
    manifest: Manifest,
) -> float:
    """Largest difference of a row from the client's tensor, as a share of its largest number.

    Raises:
        ExportError: it is more than the storage explains.
    """
    import onnx
    from onnx import numpy_helper

    worst = 0.0
    for entry in onnx.load(file).graph.initializer:
        name = tensor_name(tower, entry.name, adapted(manifest, tower))
        if name is not None and is_part(name):
            row = numpy_helper.to_array(entry)[client]
            worst = float(np.max([worst, _share(row, tensors[name])]))
    if not worst <= (HALVED if manifest.weights == "fp16" else 0.0):
        raise ExportError(
            f"{file.name} does not hold the added client: a row of it differs by {worst:.1e}. "
            "Nothing was written; please report this."
        )
    return worst


def _share(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest difference as a share of the largest number expected; NaN where one is NaN."""
    largest = float(np.abs(expected).max()) or 1.0
    return float(np.abs(found.astype(np.float64) - expected).max() / largest)


def _equation(
    h: NDArray[Any],
    tower: Tower,
    block: int,
    pair: int,
    tensors: Mapping[str, NDArray[Any]],
    manifest: Manifest,
) -> NDArray[np.float64]:
    """`s * (Up relu(W relu(Down h + b_d) + b_w) + b_u)` (arXiv 2507.05394), float64."""

    def linear(name: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        found: NDArray[np.float64] = x @ weight.astype(np.float64).T + bias
        return found

    z = np.maximum(linear(f"{tower}.{block}.down", h.astype(np.float64)), 0)
    z = np.maximum(linear(f"pair.{pair}", z), 0)
    return float(manifest.adapter["scale"]) * linear(f"{tower}.{block}.up", z)


def _session(model: bytes) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
