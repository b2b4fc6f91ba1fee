"""What a run's rounds cost, as `rounds.jsonl` tells it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

NEARLY = 0.9
"""Of the last round's validation accuracy: what "rounds to 90 %" counts up to."""


def total_cost(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the rounds so far took together: seconds, operations, bytes over all clients.

    `energy` in joules, None where a round was trained on a machine that does not tell it.
    """
    phases: dict[str, float] = {}
    for record in rounds:
        for name, part in record["seconds_by_phase"].items():
            phases[name] = phases.get(name, 0.0) + part
    energies = [record.get("energy") for record in rounds]
    is_known = bool(energies) and None not in energies
    return {
        "rounds": len(rounds),
        "seconds": sum(record["seconds"] for record in rounds),
        "seconds_by_phase": {name: round(part, 3) for name, part in phases.items()},
        "flop": sum(record["flop"] for record in rounds),
        "peak_memory": max((record["peak_memory"] for record in rounds), default=0),
        "bytes_up": sum(r["bytes_up_per_client"] * len(r["clients"]) for r in rounds),
        "bytes_down": sum(r["bytes_down_per_client"] * len(r["clients"]) for r in rounds),
        "energy": sum(energies) if is_known else None,
    }


def nearly_there(rounds: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The first round whose mean validation accuracy reaches 90 % of the last one's.

    Returns:
        `val_accuracy` to reach, `round`, and `bytes` both ways of all clients up to and with it;
        None without validation images.
    """
    if not rounds or rounds[-1]["val_accuracy"] is None:
        return None
    target, sent = NEARLY * rounds[-1]["val_accuracy"], 0
    for record in rounds:
        both_ways = record["bytes_up_per_client"] + record["bytes_down_per_client"]
        sent += both_ways * len(record["clients"])
        if record["val_accuracy"] is not None and record["val_accuracy"] >= target:
            break
    return {"val_accuracy": target, "round": record["round"], "bytes": sent}
