"""What was measured: a row per subject, tables of the rows, Markdown for people and JSON beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pfedmma_deploy.benchmark.timing import Spread, Windows, percentile, ratio, spread
from pfedmma_deploy.runtime.manifest import Manifest
from pfedmma_deploy.store.files import json_bytes, write_bytes
from pfedmma_deploy.system import Environment

Measure = Literal["rate", "end-to-end", "load", "clients"]
ENOUGH_FOR_P99 = 100
"""Calls below which the slowest hundredth is no measurement."""
IN_TURNS = (
    "Rates are medians of short windows that all subjects take in turns, with quartiles; a ratio "
    "is the median of those within each round."
)


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
    backbone: str
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
    latency: Latency | None = None
    load: float | None = None
    """Seconds for imports and loading in a fresh process."""
    first_answer: float | None = None
    """Seconds from the start of a fresh process to its first answer."""
    memory: int | None = None
    """Resident bytes of that process after the answer."""
    peak_memory: int | None = None
    file_bytes: int | None = None
    bytes_per_client: int | None = None
    """Resident bytes that one more client costs, over the file with the fewest clients."""
    reason: str | None = None
    """Why it was not measured."""

    def timed(self, windows: Mapping[str, Windows], label: str, peer: str | None) -> Row:
        """The row with what `windows` say of the contestant `label`, beside all others."""
        own = windows[label]
        rate = spread(own.rates)
        ratios = {other: ratio(own, windows[other]) for other in windows if other != label}
        return replace(
            self,
            images_per_second=rate.median,
            quartiles=[rate.low, rate.high],
            peer=peer if peer in ratios else None,
            ratio=ratios[peer].median if peer in ratios else None,
            ratios=ratios,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; keys that do not apply are left out, a rate always has its key."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        return {"images_per_second": None, "ratio": None, **values}


def bundle_row(measure: Measure, backbone: str, manifest: Manifest) -> Row:
    """The row of a bundle before it is measured."""
    return Row(
        measure,
        backbone,
        f"pfedmma {manifest.precision}",
        manifest.precision,
        manifest.flavour,
        len(manifest.clients) - 1,
    )


def latency(calls: Sequence[float]) -> Latency:
    """Percentiles of the seconds of single calls."""
    p99 = percentile(calls, 99) if len(calls) >= ENOUGH_FOR_P99 else None
    return Latency(percentile(calls, 50), percentile(calls, 95), p99, len(calls))


@dataclass(frozen=True)
class Section:
    """One table of a report."""

    title: str
    note: str
    """What a reader must know to read it."""
    columns: Sequence[str]
    cells: Sequence[Sequence[str]]
    reasons: Sequence[str] = ()
    """What was not measured, and why."""


def number(value: Any, pattern: str = "{}", scale: float = 1) -> str:
    """A cell: a number in its unit, or a text; `-` for what is not there."""
    if value is None:
        return "-"
    return pattern.format(value if scale == 1 else value * scale)


def _rate(value: float | None) -> str:
    return number(value, "{:.1f}" if value is not None and value < 100 else "{:,.0f}")


def _megabytes(value: int | None) -> str:
    return number(value, "{:,.2f}" if value is not None and value < 1e7 else "{:,.0f}", 1e-6)


def _milliseconds(row: Row, name: str) -> str:
    return number(getattr(row.latency, name, None), "{:.1f}", 1000)


Columns = dict[str, Callable[[Row], str]]
_RATES: Columns = {
    "batch": lambda row: number(row.batch_size),
    "images/s": lambda row: _rate(row.images_per_second),
    "quartiles": lambda row: " to ".join(map(_rate, row.quartiles or [])) or "-",
}
_LATENCY: Columns = {
    "p50": lambda row: _milliseconds(row, "p50"),
    "p95": lambda row: _milliseconds(row, "p95"),
    "p99": lambda row: _milliseconds(row, "p99"),
    "calls": lambda row: number(getattr(row.latency, "calls", None)),
}
_MEMORY: Columns = {
    "file, MB": lambda row: _megabytes(row.file_bytes),
    "memory, MB": lambda row: _megabytes(row.memory),
    "peak, MB": lambda row: _megabytes(row.peak_memory),
    "a client more, MB": lambda row: _megabytes(row.bytes_per_client),
}
_LOAD: Columns = {
    "import and load, s": lambda row: number(row.load, "{:.2f}"),
    "first answer, s": lambda row: number(row.first_answer, "{:.2f}"),
    **_MEMORY,
}
RATES = "rate of the model on the device"

_TABLES: Sequence[tuple[Measure, str, Columns, str]] = (
    (
        "rate",
        RATES,
        _RATES,
        "`pfedmma`: uint8 pixels in, normalised inside; every batch mixes clients. "
        "`torch eager`: open_clip's `encode_image`. `onnxruntime`: the same tower through "
        "`torch.onnx.export`, no adapters. Both take normalised floating-point pixels.",
    ),
    (
        "rate",
        "latency of one image on the device, in milliseconds",
        _LATENCY,
        "Of the calls at batch 1 above. No p99 from fewer than 100 calls.",
    ),
    (
        "end-to-end",
        "from JPEG files to labels",
        _RATES,
        "Photographs of 500 x 375 pixels. `pfedmma`: `Classifier.predict`. The others: open_clip's "
        "transform, image by image, then the model, as open_clip's README does it.",
    ),
    (
        "load",
        "load time and memory",
        _LOAD,
        "One image, each time in a fresh process. First answer: from the start of the process, "
        "imports included. torch loads both towers, as open_clip does. `pfedmma predict` is the "
        "whole command.",
    ),
    (
        "clients",
        "many clients in one file",
        {**_RATES, **_MEMORY},
        "Batches mix the clients. Memory: resident after such a batch, in a fresh process. A "
        "client more: what it adds to that, over the file with the fewest.",
    ),
)
"""Which rows stand in a table, its title, its columns and what a reader must know."""


def sections(rows: Sequence[Row]) -> list[Section]:
    """The tables of an inference benchmark by backbone; those without rows are left out."""
    found = []
    for measure, title, columns, note in _TABLES:
        chosen = [row for row in rows if row.measure == measure]
        if columns is _LATENCY:
            chosen = [row for row in chosen if row.latency is not None]
        for backbone in dict.fromkeys(row.backbone for row in chosen):
            own = [row for row in chosen if row.backbone == backbone]
            measured = [row for row in own if row.reason is None]
            reasons = [f"{row.name}: {row.reason}" for row in own if row.reason]
            names, cells = _cells(measured, columns)
            found.append(Section(f"{backbone}: {title}", note, names, cells, reasons))
    return found


def _cells(rows: Sequence[Row], columns: Columns) -> tuple[list[str], list[list[str]]]:
    """Headings and cells; a column in which nothing stands is left out."""
    # Compared with: the models without adapters, and our own fp32 where that is one file.
    peers = [row.name for row in rows if row.clients is None]
    peers += [row.name for row in rows if row.name == "pfedmma fp32" and row.measure != "clients"]
    filled = {"model": [row.name for row in rows]}
    filled["clients"] = [number(row.clients, "{:,}") for row in rows]
    for name, read in columns.items():
        filled[name] = [read(row) for row in rows]
        if name == "quartiles":
            for peer in dict.fromkeys(peers):
                filled[f"x {peer}"] = [_ratio(row, peer) for row in rows]
    names = [name for name, cells in filled.items() if any(cell != "-" for cell in cells)]
    return names, [[filled[name][place] for name in names] for place in range(len(rows))]


def _ratio(row: Row, peer: str) -> str:
    for label, found in (row.ratios or {}).items():
        if label == peer or label.startswith(f"{peer},"):
            return f"{found.median:.2f}"
    return "-"


def write_report(
    folder: Path,
    kind: str,
    command: str,
    environment: Environment,
    rows: Sequence[Mapping[str, Any]],
    tables: Sequence[Section],
    how: str = IN_TURNS,
) -> list[Path]:
    """Write `KIND-MACHINE.md` and `.json` into `folder`; returns both paths.

    Args:
        folder: made where it is not there.
        kind: `inference` or `training`.
        command: what repeats the measurement.
        environment: of the measurement.
        rows: JSON-ready.
        tables: the same for people.
        how: how it was measured, a sentence.
    """
    parts = [
        f"# {kind.capitalize()} on {environment.machine}",
        f"Made by `{command}`. {how}",
        environment_lines(environment),
    ]
    for section in tables:
        parts.append(f"## {section.title}")
        if section.note not in parts:
            parts.append(section.note)
        head, *body = [f"| {' | '.join(line)} |" for line in (section.columns, *section.cells)]
        parts.append("\n".join([head, f"|{'---|' * len(section.columns)}", *body]))
        parts += [f"Not measured: {reason}" for reason in section.reasons]
    files = [folder / f"{kind}-{environment.machine}.{ending}" for ending in ("md", "json")]
    write_bytes(files[0], ("\n\n".join(parts) + "\n").encode())
    write_bytes(files[1], json_bytes({"rows": rows, "environment": environment.to_dict()}))
    return files


def environment_lines(environment: Environment) -> str:
    """The environment as a Markdown list."""
    memory, load = environment.memory, environment.load
    lines = [
        f"- Processor: {environment.cpu} ({', '.join(environment.instructions) or 'unknown'}), "
        f"{environment.cores} cores, {environment.threads} threads used"
        + (f", {memory / 1e9:.0f} GB" if memory else ""),
        f"- GPU: {environment.gpu or 'none'}",
        f"- System: {environment.system}, Python {environment.python}",
        "- " + ", ".join(f"{name} {text}" for name, text in environment.versions.items()),
        f"- Measured {environment.date}"
        + (f"; load of the machine before: {load:.2f}" if load is not None else ""),
    ]
    return "\n".join(lines)
