"""The tables of the inference benchmark, made of its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from pfedmma_deploy.benchmark.report import Section
from pfedmma_deploy.benchmark.rows import Measure, Row

__all__ = ["sections"]

Cell = str


def sections(rows: Sequence[Row]) -> list[Section]:
    """The tables of an inference benchmark by backbone; those without rows are left out."""
    found = []
    for table in _TABLES:
        chosen = [row for row in rows if table.measure == row.measure and table.takes(row)]
        for backbone in dict.fromkeys(row.backbone for row in chosen):
            own = [row for row in chosen if row.backbone == backbone]
            columns, cells = _columns(table, [row for row in own if row.reason is None])
            reasons = [f"{row.name}: {row.reason}" for row in own if row.reason]
            title = table.title if backbone is None else f"{backbone}: {table.title}"
            found.append(Section(title, table.note, columns, cells, reasons))
    return found


def _columns(table: _Table, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells; a column in which nothing stands is left out."""
    columns = {**_WHAT, **table.columns}
    if table.compares:
        columns |= {f"x {peer}": partial(_ratio, peer=peer) for peer in _peers(rows)}
    columns |= table.last
    cells = [[read(row) for read in columns.values()] for row in rows]
    filled = [i for i in range(len(columns)) if any(row[i] != "-" for row in cells)]
    names = list(columns)
    return [names[i] for i in filled], [[row[i] for i in filled] for row in cells]


def _peers(rows: Sequence[Row]) -> list[str]:
    """What is compared with: the models without adapters, and our own fp32 where it is one file."""
    plain = [row.name for row in rows if row.clients is None]
    own = [row.name for row in rows if row.name == "pfedmma fp32" and row.measure != "clients"]
    return list(dict.fromkeys([*plain, *own]))


def _ratio(row: Row, peer: str) -> Cell:
    for label, found in (row.ratios or {}).items():
        if label == peer or label.startswith(f"{peer},"):
            return f"{found.median:.2f}"
    return "-"


def _rate(row: Row) -> Cell:
    return "-" if row.images_per_second is None else _number(row.images_per_second)


def _quartiles(row: Row) -> Cell:
    if not row.quartiles or row.images_per_second is None:
        return "-"
    return " to ".join(_number(value) for value in row.quartiles)


def _number(value: float) -> Cell:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _percent(value: float | None) -> Cell:
    return "-" if value is None else f"{100 * value:.0f}"


def _milliseconds(value: float | None) -> Cell:
    return "-" if value is None else f"{1000 * value:.1f}"


def _seconds(value: float | None) -> Cell:
    return "-" if value is None else f"{value:.2f}"


def _megabytes(value: int | None) -> Cell:
    return "-" if value is None else f"{value / 1e6:,.2f}" if value < 1e7 else f"{value / 1e6:,.0f}"


def _clients(row: Row) -> Cell:
    return "-" if row.clients is None else f"{row.clients:,}"


Columns = Mapping[str, Callable[[Row], Cell]]
_WHAT: Columns = {
    "model": lambda row: row.name,
    "clients": _clients,
}
_RATES: Columns = {
    "batch": lambda row: "-" if row.batch_size is None else str(row.batch_size),
    "images/s": _rate,
    "quartiles": _quartiles,
}
_MEMORY: Columns = {
    "file, MB": lambda row: _megabytes(row.file_bytes),
    "memory, MB": lambda row: _megabytes(row.memory),
    "peak, MB": lambda row: _megabytes(row.peak_memory),
}


@dataclass(frozen=True)
class _Table:
    """Which rows stand in a table, and in which columns."""

    title: str
    note: str
    measure: Measure
    columns: Columns
    compares: bool = False
    """Whether there is a column of ratios for every peer."""
    last: Columns = field(default_factory=dict)
    takes: Callable[[Row], bool] = lambda row: True


_TABLES = (
    _Table(
        "Matrix product: the machine's practical peak",
        "Rate of a large matrix product (2,048 squared on a CPU, 8,192 on a GPU) in the libraries "
        "that are compared. Shares of the peak below refer to ONNX Runtime's on a CPU, to torch's "
        "on a GPU.",
        "peak",
        {"GFLOP/s": lambda row: _number((row.flop_per_second or 0) / 1e9)},
    ),
    _Table(
        "rate of the model on the device",
        "`pfedmma`: uint8 pixels in, normalised inside; every batch mixes clients. "
        "`torch eager`: open_clip's `encode_image`. `onnxruntime`: the same tower through "
        "`torch.onnx.export`, no adapters. Both take normalised floating-point pixels. The share "
        "of the peak counts the operations that each does, adapters left out.",
        "rate",
        _RATES,
        compares=True,
        last={"% of peak": lambda row: _percent(row.share_of_peak)},
    ),
    _Table(
        "latency of one image on the device, in milliseconds",
        "Of the calls at batch 1 above. No p99 from fewer than 100 calls.",
        "rate",
        {
            "p50": lambda row: _milliseconds(row.latency.p50 if row.latency else None),
            "p95": lambda row: _milliseconds(row.latency.p95 if row.latency else None),
            "p99": lambda row: _milliseconds(row.latency.p99 if row.latency else None),
            "calls": lambda row: str(row.latency.calls) if row.latency else "-",
        },
        takes=lambda row: row.latency is not None,
    ),
    _Table(
        "from JPEG files to labels",
        "Photographs of 500 x 375 pixels. `pfedmma`: `Classifier.predict`. The others: open_clip's "
        "transform, image by image, then the model, as open_clip's README does it.",
        "end-to-end",
        _RATES,
        compares=True,
    ),
    _Table(
        "load time and memory",
        "One image, each time in a fresh process. First answer: from the start of the process, "
        "imports included. torch loads both towers, as open_clip does. `pfedmma predict` is the "
        "whole command.",
        "load",
        {
            "import and load, s": lambda row: _seconds(row.load),
            "first answer, s": lambda row: _seconds(row.first_answer),
        },
        last=_MEMORY,
    ),
    _Table(
        "many clients in one file",
        "Batches mix the clients. Memory: resident after such a batch, in a fresh process. A "
        "client more: what it adds to that, over the file with the fewest.",
        "clients",
        _RATES,
        compares=True,
        last={**_MEMORY, "a client more, MB": lambda row: _megabytes(row.bytes_per_client)},
    ),
)
