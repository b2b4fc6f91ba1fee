"""A comparison as files: Markdown for people, CSV and JSON for programs, a figure.

Beside our own figures stand those that papers report for the same protocol, marked as theirs; they
and their sources are in `assets/published.toml`.
"""

from __future__ import annotations

import csv
import io
import math
import platform
import statistics
import tomllib
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from pfedmma_deploy.config import PartitionConfig
from pfedmma_deploy.data.catalog import known_datasets
from pfedmma_deploy.evaluation.accuracy import Accuracy
from pfedmma_deploy.report.compare import Comparison, best_rate
from pfedmma_deploy.report.trials import Result
from pfedmma_deploy.store.files import json_bytes, write_bytes
from pfedmma_deploy.templates import environment

ACCURACIES = ("local", "base", "novel", "hm3", "hm2", "all")
CLIENT_FIGURES = ("worst_local", "worst_all", "losing_share")
SHARED_OPTIONS = (
    "data", "backbone", "pretrained", "clients", "classes", "partition", "dirichlet_beta", "shots",
    "rounds", "local_epochs", "clients_per_round", "batch_size", "transform", "logit_scale",
    "prompt",
)  # fmt: skip
LIBRARIES = ("pfedmma-deploy", "torch", "open_clip_torch", "numpy")

# 0.975 quantiles of Student's t by degrees of freedom (any table of the t distribution).
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL = 1.960

# Colours that people with colour-blindness tell apart (Okabe and Ito, 2008), and shapes besides.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_CRITERIA = {
    "harmonic": "the harmonic mean of two accuracies",
    "own": "the first of two accuracies",
}

Figure = dict[str, float | None]
"""Of several seeds `mean`, sample `deviation`, and half the 95 % `interval` by Student's t.

The last two are None of a single seed.
"""


def spread(values: Sequence[float | None]) -> Figure | None:
    """Mean, deviation and 95 % interval; None where a value is not measured."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    if len(known) == 1:
        return {"mean": known[0], "deviation": None, "interval": None}
    deviation = statistics.stdev(known)
    degrees = len(known) - 1
    t = _T[degrees - 1] if degrees <= len(_T) else _NORMAL
    interval = t * deviation / math.sqrt(len(known))
    return {"mean": statistics.fmean(known), "deviation": deviation, "interval": interval}


def write_comparison(comparison: Comparison) -> list[Path]:
    """Write `compare.json`, `.csv`, `.md` and `.png` into the comparison's folder."""
    values = to_dict(comparison)
    written = {
        "compare.json": json_bytes(values),
        "compare.csv": _csv(values).encode(),
        "compare.md": markdown(values).encode(),
        "compare.png": _figure(values),
    }
    for name, data in written.items():
        write_bytes(comparison.folder / name, data)
    return [comparison.folder / name for name in written]


def to_dict(
    comparison: Comparison, published: Sequence[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """JSON-ready: options, one row per method, the grids; accuracies in percent.

    Args:
        comparison: what was measured.
        published: figures of papers for the same protocol; None looks them up.
    """
    rows = list(comparison.results.values())
    first = rows[0][0]
    config = comparison.config
    if published is None:
        published = published_rows(config.data, config.partition, config.backbone)
    options = config.to_options()
    shared = {name: options[name] for name in SHARED_OPTIONS}
    shared["data"] = Path(shared["data"]).name
    tuning = {}
    for name, results in comparison.tuning.items():
        grid = [_tried(one) for one in results]
        tuning[name] = {"grid": grid, "chosen": best_rate(results, comparison.criterion)}
    return {
        "options": shared,
        "seeds": [one.seed for one in rows[0]],
        "rows": [_row(results) for results in rows],
        "zero_shot": None if first.zero_shot is None else first.zero_shot.to_dict(),
        "criterion": comparison.criterion if tuning else None,
        "tuning": tuning,
        "published": list(published),
        "environment": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            **{name: version(name) for name in LIBRARIES},
        },
    }


def _tried(result: Result) -> dict[str, float | None]:
    """One learning rate of a grid; no figures where training diverged."""
    found = result.validation
    figures = ("own", "others", "harmonic")
    if found is None:
        return {"lr": result.lr, **dict.fromkeys(figures)}
    values = (found.own, found.others, found.by("harmonic"))
    return {"lr": result.lr, **dict(zip(figures, values, strict=True))}


def _row(results: Sequence[Result]) -> dict[str, Any]:
    first = results[0]
    row: dict[str, Any] = {"method": first.method, "lr": first.lr}
    accuracies = [(one.accuracy or Accuracy(None, None, None)).to_dict() for one in results]
    for key in ACCURACIES:
        row[key] = spread([one[key] for one in accuracies])
    for key in CLIENT_FIGURES:
        row[key] = spread([getattr(one, key) for one in results])
    return row | {
        "parameters_trained": first.trained,
        "parameters_shared": first.shared,
        "bytes_up_per_client_round": first.bytes_up,
        "bytes_down_per_client_round": first.bytes_down,
        "seconds": statistics.fmean(one.seconds for one in results),
    }


def markdown(values: dict[str, Any]) -> str:
    """The tables as Markdown."""
    options = []
    for name, value in values["options"].items():
        if value is not None:
            options.append(f"{name.replace('_', ' ')} {value}")
    templates = environment("report", keep_trailing_newline=True)
    templates.filters["spread"] = _cell
    templates.filters["percent"] = lambda value: "-" if value is None else f"{value:.1f}"
    return templates.get_template("comparison.md").render(
        {
            **values,
            "options": ", ".join(options),
            "tuning_by": _CRITERIA.get(values["criterion"]),
            "accuracies": ACCURACIES,
            "spreads": (*ACCURACIES, *CLIENT_FIGURES),
            "counts": (
                "parameters_trained",
                "parameters_shared",
                "bytes_up_per_client_round",
                "bytes_down_per_client_round",
            ),
        }
    )


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    if figure["interval"] is None:
        return f"{figure['mean']:.1f}"
    return f"{figure['mean']:.1f} ± {figure['interval']:.1f} ({figure['deviation']:.1f})"


def _csv(values: dict[str, Any]) -> str:
    """One line per method; mean, deviation and interval of an accuracy are columns of their own."""
    lines = []
    for row in values["rows"]:
        flat: dict[str, Any] = {}
        for key, value in row.items():
            if key not in (*ACCURACIES, *CLIENT_FIGURES):
                flat[key] = value
                continue
            for field in ("mean", "deviation", "interval"):
                flat[f"{key}_{field}"] = None if value is None else value[field]
        lines.append(flat)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def _figure(values: dict[str, Any]) -> bytes:
    """PNG of local accuracy (x) against novel accuracy (y), or base where nothing is novel."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in values["rows"] if row["local"] is not None]
    key = "novel" if any(row["novel"] for row in rows) else "base"
    figure = Figure(figsize=(8.5, 5.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, row in enumerate(row for row in rows if row[key] is not None):
        colour = _COLOURS[index % len(_COLOURS)]
        axes.errorbar(
            row["local"]["mean"],
            row[key]["mean"],
            xerr=row["local"]["interval"],
            yerr=row[key]["interval"],
            fmt=_MARKERS[(index // len(_COLOURS)) % len(_MARKERS)],
            color=colour,
            ecolor=(colour, 0.35),
            markersize=8,
            capsize=2,
            label=row["method"],
        )
    words = {"novel": "classes never seen", "base": "all classes trained on"}
    axes.set_xlabel("Personalization: accuracy on each client's own classes (%)")
    axes.set_ylabel(f"Generalization: accuracy on {words[key]} (%)")
    axes.set_title(f"{values['options']['data']} on {values['options']['backbone']}", loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    buffer = io.BytesIO()
    # No date and no version inside: the same figures give the same file.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def published_rows(dataset: str, partition: PartitionConfig, backbone: str) -> list[dict[str, Any]]:
    """The published figures for this data set, partition and backbone.

    Args:
        dataset: the name of a known data set, or the folder that it was read from.
        partition: its `classes`, `scheme` and `num_shots` count.
        backbone: open_clip's name; `ViT-B/16` counts as `ViT-B-16`.

    Returns:
        One dictionary per method: `method`, `local`, `base`, `novel`, `hm3` in percent, `source`,
        `url` and the `datasets` that the figures are means over. Empty where no paper has that
        combination.
    """
    name = _known_name(dataset)
    wanted = (_plain(backbone), partition.num_shots, partition.classes, partition.scheme)
    found = []
    for table in _published_tables():
        made_with = (table["shots"], table["classes"], table["partition"])
        if name in table["datasets"] and wanted == (_plain(table["backbone"]), *made_with):
            source = {key: table[key] for key in ("source", "url", "datasets")}
            for method, figures in table["methods"].items():
                found.append({"method": method, **figures, **source})
    return found


@cache
def _published_tables() -> tuple[dict[str, Any], ...]:
    file = files("pfedmma_deploy").joinpath("assets", "published.toml")
    return tuple(tomllib.loads(file.read_text(encoding="utf-8"))["tables"])


def _known_name(dataset: str) -> str:
    """`/data/oxford-iiit-pet` is oxford_pets."""
    last = Path(dataset).name
    for known in known_datasets().values():
        if last == known.name or last in {Path(folder).name for folder in known.folders}:
            return known.name
    return last


def _plain(backbone: str) -> str:
    return backbone.replace("/", "-").casefold()
