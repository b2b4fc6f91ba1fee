"""One measured line: what was run, how fast it was, and beside whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pfedmma_deploy.benchmark.timing import Spread, Windows, percentile, ratio, spread

__all__ = ["Latency", "Measure", "Row", "latency", "timed"]

Measure = Literal["peak", "rate", "end-to-end", "load", "clients"]
ENOUGH_FOR_P99 = 100
"""Calls below which the slowest hundredth is no measurement."""


@dataclass(frozen=True)
class Latency:
    """Seconds of single calls."""

    p50: float
    p95: float
    p99: float | None
    """None where there were too few calls for it."""
    calls: int


@dataclass(frozen=True)
class Row:
    """One subject in one measurement; None is what was not measured or does not apply."""

    measure: Measure
    backbone: str | None
    name: str
    precision: str
    flavour: str | None = None
    clients: int | None = None
    """Clients in the file; batches mix them."""
    batch_size: int | None = None
    images_per_second: float | None = None
    """Median over the rounds."""
    quartiles: Sequence[float] | None = None
    """Of the rounds' rates, lower and upper."""
    peer: str | None = None
    ratio: float | None = None
    """Times the rate of `peer`: median of the ratios within each round."""
    ratios: Mapping[str, Spread] | None = None
    """The same to every peer, with quartiles."""
    share_of_peak: float | None = None
    """Share of the matrix product's rate on this machine, 0 to 1, in the same rounds."""
    flop_per_second: float | None = None
    """Of a matrix product, median over the rounds."""
    latency: Latency | None = None
    load: float | None = None
    """Seconds for imports and loading in a fresh process."""
    first_answer: float | None = None
    """Seconds from the start of a fresh process to its first answer."""
    memory: int | None = None
    """Resident bytes of that process after the answer."""
    peak_memory: int | None = None
    file_bytes: int | None = None
    """Size of the model's file."""
    bytes_per_client: int | None = None
    """Resident bytes that one more client costs, over the file with the fewest clients."""
    reason: str | None = None
    """Why it was not measured."""

    def with_rates(self, fields: Mapping[str, Any]) -> Row:
        """The row with the fields that `timed` gives."""
        return replace(self, **fields)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; keys that do not apply are left out, a rate always has its key."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        return {"images_per_second": None, "ratio": None, **values}


def timed(windows: Mapping[str, Windows], label: str, peer: str | None) -> dict[str, Any]:
    """The fields of a row that come from rounds: rate, quartiles, ratios to all others."""
    rate = spread(windows[label].rates)
    ratios = {other: ratio(windows[label], windows[other]) for other in windows if other != label}
    return {
        "images_per_second": rate.median,
        "quartiles": rate.to_list(),
        "peer": peer if peer in ratios else None,
        "ratio": ratios[peer].median if peer in ratios else None,
        "ratios": ratios,
    }


def latency(calls: Sequence[float]) -> Latency:
    """Percentiles of the seconds of single calls."""
    p99 = percentile(calls, 99) if len(calls) >= ENOUGH_FOR_P99 else None
    return Latency(percentile(calls, 50), percentile(calls, 95), p99, len(calls))
