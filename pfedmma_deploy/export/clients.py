"""The clients of a bundle, and their adapters stacked into banks.

A bank holds one matrix of all clients, `[clients + 1, ...]`; row 0 is zero, which makes the adapter
add exactly nothing: client index 0 is the frozen CLIP.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.adapters.graph_form import is_part
from pfedmma_deploy.errors import ExportError
from pfedmma_deploy.runtime.manifest import ZERO_SHOT
from pfedmma_deploy.types import TOWERS, Scope, Tower

if TYPE_CHECKING:
    from pfedmma_deploy.backbone.clip import Backbone

__all__ = [
    "AdapterBanks",
    "Equation",
    "ExportClient",
    "adapter_hook",
    "finite",
    "require_names",
    "stack_banks",
]

_LAYER = re.compile(r"(image|text)\.(\d+)\.down\.weight")


@dataclass(frozen=True)
class ExportClient:
    """One client's own model, as the bundle takes it."""

    id: str
    tensors: Mapping[str, Any]
    """Tensors or arrays by name. Those of pFedMMA's adapter, `pair.*` included: `image.{block}.`
    `down.weight [r, d]`, `down.bias [r]`, `up.weight [d, r]`, `up.bias [d]`, the same under
    `text.{block}`, and `pair.{p}.weight [r, r]`, `pair.{p}.bias [r]`; and those of
    `pfedmma_deploy.adapters.graph_form`."""
    seen: Sequence[int] = ()
    """Labels that the client trained on."""
    trained: Adapter | None = None
    """The trained adapter itself, which the graph is compared with. None: pFedMMA's equation."""


@dataclass(frozen=True)
class AdapterBanks:
    """One adapted block, all clients: weights as `h @ weight` takes them, row 0 zero-shot."""

    down_weight: Tensor
    """[clients + 1, d, r]"""
    down_bias: Tensor
    """[clients + 1, 1, r]"""
    pair_weight: Tensor
    """[clients + 1, r, r]"""
    pair_bias: Tensor
    """[clients + 1, 1, r]"""
    up_weight: Tensor
    """[clients + 1, r, d]"""
    up_bias: Tensor
    """[clients + 1, 1, d]"""


def require_names(clients: Sequence[ExportClient]) -> None:
    """Raises `ExportError` where there is no client, two of one name, or one named zero-shot."""
    ids = [client.id for client in clients]
    for name in ids:
        if name == ZERO_SHOT or ids.count(name) > 1:
            why = "is the name of client 0" if name == ZERO_SHOT else "is there twice"
            raise ExportError(f"Client {name!r} {why}: every client needs a name of its own.")
    if not clients:
        raise ExportError("There is no client to export: train first, or name at least one.")


def stack_banks(
    clients: Sequence[ExportClient], backbone: Backbone, bottleneck_dim: int
) -> dict[Tower, dict[int, AdapterBanks]]:
    """Banks of every adapted block by tower and block index; blocks come from the tensor names.

    Raises:
        ExportError: tensors that are missing, unknown, of another shape than the backbone's, or
            not finite.
    """
    blocks = adapted_blocks(clients[0].tensors)
    expected = expected_shapes(blocks, backbone, bottleneck_dim)
    tensors = {client.id: _checked(client, expected) for client in clients}

    def bank(name: str) -> Tensor:
        rows = [tensors[client.id][name] for client in clients]
        return torch.stack([torch.zeros_like(rows[0]), *rows])

    banks: dict[Tower, dict[int, AdapterBanks]] = {}
    for tower in TOWERS:
        banks[tower] = {
            block: AdapterBanks(
                down_weight=bank(f"{tower}.{block}.down.weight").transpose(1, 2).contiguous(),
                down_bias=bank(f"{tower}.{block}.down.bias").unsqueeze(1),
                pair_weight=bank(f"pair.{pair}.weight").transpose(1, 2).contiguous(),
                pair_bias=bank(f"pair.{pair}.bias").unsqueeze(1),
                up_weight=bank(f"{tower}.{block}.up.weight").transpose(1, 2).contiguous(),
                up_bias=bank(f"{tower}.{block}.up.bias").unsqueeze(1),
            )
            for pair, block in enumerate(blocks[tower])
        }
    return banks


def adapted_blocks(names: Iterable[str]) -> dict[Tower, list[int]]:
    """Adapted blocks of each tower, ascending; pair p belongs to the p-th of both, or of one alone.

    Raises:
        ExportError: no block in either tower.
    """
    found: dict[Tower, list[int]] = {"image": [], "text": []}
    for match in filter(None, map(_LAYER.fullmatch, names)):
        found["image" if match[1] == "image" else "text"].append(int(match[2]))
    if not found["image"] and not found["text"]:
        raise ExportError("The adapter has no layers in either tower: is this a pFedMMA adapter?")
    return {tower: sorted(blocks) for tower, blocks in found.items()}


def expected_shapes(
    blocks: Mapping[Tower, Sequence[int]], backbone: Backbone, bottleneck_dim: int
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of an adapter on these blocks.

    Raises:
        ExportError: a block lies beyond the backbone's last.
    """
    r = bottleneck_dim
    shapes: dict[str, tuple[int, ...]] = {}
    for tower in TOWERS:
        d, depth = backbone.width(tower), backbone.depth(tower)
        for block in blocks[tower]:
            if block >= depth:
                raise ExportError(
                    f"The adapter sits in {tower} block {block}, but {backbone.name} has {depth} "
                    f"{tower} blocks: it was trained on another backbone."
                )
            shapes[f"{tower}.{block}.down.weight"] = (r, d)
            shapes[f"{tower}.{block}.down.bias"] = (r,)
            shapes[f"{tower}.{block}.up.weight"] = (d, r)
            shapes[f"{tower}.{block}.up.bias"] = (d,)
    for pair in range(max(map(len, blocks.values()))):
        shapes[f"pair.{pair}.weight"] = (r, r)
        shapes[f"pair.{pair}.bias"] = (r,)
    return shapes


def _checked(client: ExportClient, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The client's tensors in fp32, each found to be what it should be."""
    own = {name for name in client.tensors if not is_part(name)}
    missing, unknown = expected.keys() - own, own - expected.keys()
    if missing or unknown:
        problem = f"lacks {min(missing)}" if missing else f"has an unknown {min(unknown)}"
        raise ExportError(
            f"The adapter of client {client.id!r} {problem} ({len(missing)} missing, "
            f"{len(unknown)} unknown): all clients need the same layers, on the same backbone."
        )
    tensors = {}
    for name, shape in expected.items():
        tensor = finite(client, name)
        if tuple(tensor.shape) != shape:
            raise ExportError(
                f"The adapter of client {client.id!r} has {name} of shape {list(tensor.shape)}, "
                f"expected {list(shape)}: another rank or another backbone."
            )
        tensors[name] = tensor
    return tensors


def finite(client: ExportClient, name: str) -> Tensor:
    """A client's tensor in fp32. Raises `ExportError` where it is not finite."""
    tensor = torch.as_tensor(client.tensors[name]).detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(tensor).all()):
        raise ExportError(
            f"The adapter of client {client.id!r} has NaN or infinity in {name}: "
            "train the client again, with a lower learning rate."
        )
    return tensor


class Equation(Adapter):
    """pFedMMA's adapter straight from its equation (see `adapter_hook`)."""

    def __init__(self, tensors: Mapping[str, Any], scale: float) -> None:
        super().__init__()
        self._hook = adapter_hook(tensors, scale)

    def hook(self, tower: Tower, block: int, h: Tensor) -> Tensor | None:
        """What is added to the output of a block."""
        return self._hook(tower, block, h)

    def scopes(self) -> dict[str, Scope]:
        """It has no parameters: nobody trains it."""
        return {}


def adapter_hook(
    tensors: Mapping[str, Any], scale: float
) -> Callable[[Tower, int, Tensor], Tensor | None]:
    """The adapter as a hook of `Backbone.encode_*`, straight from the equation.

    `a = s * up(relu(pair(relu(down(h)))))` (arXiv 2507.05394, section 3), h [B, T, d] -> [B, T, d].
    """
    blocks = adapted_blocks(tensors)
    weights = {name: torch.as_tensor(value) for name, value in tensors.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        weight, bias = weights[f"{name}.weight"].to(x), weights[f"{name}.bias"].to(x)
        return torch.nn.functional.linear(x, weight, bias)

    def hook(tower: Tower, block: int, h: Tensor) -> Tensor | None:
        if block not in blocks[tower]:
            return None
        pair = blocks[tower].index(block)
        z = linear(f"{tower}.{block}.down", h).relu()
        z = linear(f"pair.{pair}", z).relu()
        return scale * linear(f"{tower}.{block}.up", z)

    return hook
