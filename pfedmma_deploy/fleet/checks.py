"""What either side accepts of the other: names, shapes and finite numbers that were announced."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

import torch

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.errors import FleetError
from pfedmma_deploy.federated.engine import ClientReport, payload
from pfedmma_deploy.fleet.messages import Note
from pfedmma_deploy.methods.aggregation import PerHolder
from pfedmma_deploy.methods.base import Method, Tensors, Update
from pfedmma_deploy.types import ClientData, Scope

FAR = 10.0
"""Times the median norm of the round's updates, beyond which one is refused."""
FEWEST_FOR_NORM = 3
"""Updates without which none can be called far from the others."""
MAX_EXAMPLES = 10_000_000
MAX_REMARKS = 4_000
"""Characters of a method's remarks, as JSON."""
_NEIGHBOURS = 32
"""Other clients that are made up to see what a server would send; the most that any method passes
on is far below."""
_LARGEST = sys.float_info.max
_NOBODY = ClientData("", (), (), (), ())


def check_report(
    note: Note, site: str, round: int, adapter: Adapter, method: Method[Any, Any], sent: Tensors
) -> ClientReport:
    """A site's answer as a report, once nothing is wrong with it.

    Args:
        note: what the site sent.
        site: who sent it.
        round: the round it was asked for, from 0.
        adapter: of the method, for names and shapes.
        method: what is trained.
        sent: what the site was sent in this round.

    Raises:
        FleetError: what is wrong, as the end of a sentence that starts with the site.
    """
    values = note.values
    if note.kind != "train" or values.get("round") != round:
        raise FleetError(f"answered for round {values.get('round')!r}, was asked for {round}")
    expected = adapter.tensors(Scope.SHARED)
    is_partial = isinstance(method.aggregator(), PerHolder)
    _require_tensors(note.tensors, expected, is_partial=is_partial)
    examples = values.get("num_examples")
    if type(examples) is not int or not 1 <= examples <= MAX_EXAMPLES:
        raise FleetError(
            f"says that it trained on {examples!r} images, expected 1 to {MAX_EXAMPLES:,}"
        )
    loss, accuracy = values.get("loss"), values.get("val_accuracy")
    if loss is None or not _is_number(loss):
        raise FleetError(f"reports a loss of {loss!r}, expected a finite number")
    if accuracy is not None and not (_is_number(accuracy) and 0 <= accuracy <= 100):
        raise FleetError(f"reports an accuracy of {accuracy!r}, expected 0 to 100 or none")
    remarks = values.get("remarks", {})
    if not isinstance(remarks, dict) or _json_size(remarks) > MAX_REMARKS:
        raise FleetError(f"sent remarks that are no table of {MAX_REMARKS:,} characters at most")
    return ClientReport(
        Update(site, note.tensors, examples), float(loss), accuracy, payload(sent), remarks
    )


def far_updates(reports: Mapping[str, ClientReport], sent: Mapping[str, Tensors]) -> dict[str, str]:
    """Sites whose update is far larger than the others', with the reason."""
    if len(reports) < FEWEST_FOR_NORM:
        return {}
    norms = {site: _distance(report.update.shared, sent[site]) for site, report in reports.items()}
    median = sorted(norms.values())[(len(norms) - 1) // 2]
    return {
        site: f"its update is {norm / median:,.0f} times as large as the round's median"
        if median
        else "its update moves, and the others' do not"
        for site, norm in norms.items()
        if norm > FAR * median
    }


def check_sent(
    tensors: Tensors, adapter: Adapter, method: Method[Any, Any], client: ClientData
) -> None:
    """Raises `FleetError` where a server sends a site other tensors than its method can send."""
    least, most = _sendable(adapter, method, client)
    _require_tensors(tensors, most, is_partial=True)
    missing = sorted(least.keys() - tensors.keys())
    if missing:
        raise FleetError(f"lacks tensor {missing[0]}")


def largest_sent(adapter: Adapter, method: Method[Any, Any], client: ClientData) -> int:
    """Bytes of tensors that a server can send a site in one message, at most."""
    return payload(_sendable(adapter, method, client)[1])


def _sendable(
    adapter: Adapter, method: Method[Any, Any], client: ClientData
) -> tuple[Tensors, Tensors]:
    """The least and the most that a server can send a site."""
    server = method.start(adapter, [client.id])
    least = method.distribute(server, client.id)
    aggregator = method.aggregator()
    upload = method.upload(adapter, _NOBODY)
    for other in range(_NEIGHBOURS):
        server = aggregator.combine([Update(f"{client.id}-{other}", upload, 1)], server)
    return least, {**least, **method.distribute(server, client.id)}


def _require_tensors(found: Tensors, expected: Tensors, *, is_partial: bool) -> None:
    for name in sorted(found.keys() - expected.keys()):
        raise FleetError(f"sent a tensor {name[:80]!r} that was not announced")
    if not is_partial:
        for name in sorted(expected.keys() - found.keys()):
            raise FleetError(f"sent no tensor {name}")
    if expected and not found:
        raise FleetError("sent no tensors at all")
    for name, value in found.items():
        wanted = expected[name]
        if value.shape != wanted.shape or value.dtype != wanted.dtype:
            raise FleetError(f"sent {name} as {_kind(value)}, expected {_kind(wanted)}")
        if not bool(torch.isfinite(value).all()):
            raise FleetError(f"sent {name} with numbers that are not finite")


def _kind(value: torch.Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def _is_number(value: object) -> bool:
    # A whole number may be too large for a float.
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST  # type: ignore[operator]


def _json_size(values: object) -> float:
    """Characters as JSON; infinite where a number in it is not finite, which JSON cannot say."""
    try:
        return len(json.dumps(values, allow_nan=False))
    except ValueError:
        return math.inf


def _distance(update: Tensors, sent: Tensors) -> float:
    """L2 norm of what a client changed, over all of its tensors together."""
    total = 0.0
    for name, value in update.items():
        start = sent.get(name)
        change = value.double() - (0 if start is None else start.double())
        total += float((change**2).sum())
    return math.sqrt(total)
