"""A comparison as files: Markdown for people, CSV and JSON for programs, a figure.

Beside our own figures stand those that papers report for the same protocol, marked as theirs. The
JSON has every seed's figures, so that other statistics can be made of them.
"""

from __future__ import annotations

import csv
import io
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfedmma_deploy.evaluation.accuracy import Accuracy
from pfedmma_deploy.report.compare import Comparison, best_rate
from pfedmma_deploy.report.comparison_figure import frontier
from pfedmma_deploy.report.published import published_rows
from pfedmma_deploy.report.significance import Figure, differences, spread
from pfedmma_deploy.report.trials import Result
from pfedmma_deploy.store.files import json_bytes, write_bytes
from pfedmma_deploy.templates import environment

if TYPE_CHECKING:
    from jinja2 import Environment

ACCURACIES = ("local", "base", "novel", "hm3", "hm2", "all")
CLIENT_FIGURES = ("worst_local", "worst_all", "losing_share")
SHARED_OPTIONS = (
    "data", "backbone", "pretrained", "clients", "classes", "partition", "dirichlet_beta", "shots",
    "rounds", "local_epochs", "clients_per_round", "batch_size", "transform", "logit_scale",
    "prompt",
)  # fmt: skip
LIBRARIES = ("pfedmma-deploy", "torch", "open_clip_torch", "numpy")

_CRITERIA = {
    "harmonic": "the harmonic mean of two accuracies",
    "own": "the first of two accuracies",
}


def write_comparison(comparison: Comparison) -> list[Path]:
    """Write `compare.json`, `.csv`, `.md` and `.png` into the comparison's folder."""
    values = to_dict(comparison)
    written = {
        "compare.json": json_bytes(values),
        "compare.csv": _csv(values).encode(),
        "compare.md": markdown(values).encode(),
        "compare.png": frontier(values),
    }
    for name, data in written.items():
        write_bytes(comparison.folder / name, data)
    return [comparison.folder / name for name in written]


def to_dict(
    comparison: Comparison, published: Sequence[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """JSON-ready: options, one row per method, differences, the grids; accuracies in percent.

    `rows` and `zero_shot` have every seed's figures in `by_seed`. `differences` has one table
    against `comparison.against` and one against zero-shot (only one where that is the same), with a
    `Difference` by method and figure.

    Args:
        comparison: what was measured.
        published: figures of papers for the same protocol; None looks them up.
    """
    rows = [_row(results) for results in comparison.results.values()]
    first = next(iter(comparison.results.values()))
    zero_shot = accuracy_row([_figures(one.seed, one.zero_shot) for one in first])
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
        "seeds": [one.seed for one in first],
        "rows": rows,
        "zero_shot": zero_shot,
        "differences": difference_tables(rows, zero_shot, comparison.against),
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
    row = accuracy_row([_figures(one.seed, one.accuracy) for one in results])
    for key in CLIENT_FIGURES:
        row[key] = spread([getattr(one, key) for one in results])
    for figures, one in zip(row["by_seed"], results, strict=True):
        figures |= {key: getattr(one, key) for key in (*CLIENT_FIGURES, "seconds")}
    return {
        "method": first.method,
        "lr": first.lr,
        **row,
        "parameters_trained": first.trained,
        "parameters_shared": first.shared,
        "bytes_up_per_client_round": first.bytes_up,
        "bytes_down_per_client_round": first.bytes_down,
        "seconds": statistics.fmean(one.seconds for one in results),
    }


def _figures(seed: int, accuracy: Accuracy | None) -> dict[str, Any]:
    return {"seed": seed, **(accuracy or Accuracy(None, None, None)).to_dict()}


def accuracy_row(by_seed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Every accuracy's mean over seeds with its spread, and the seeds' own under `by_seed`."""
    row: dict[str, Any] = {key: spread(_of_seeds(by_seed, key)) for key in ACCURACIES}
    return row | {"by_seed": list(by_seed)}


def _of_seeds(by_seed: Sequence[Mapping[str, Any]], key: str) -> list[float | None]:
    return [one[key] for one in by_seed]


def difference_tables(
    rows: Sequence[Mapping[str, Any]], zero_shot: Mapping[str, Any], against: str
) -> list[dict[str, Any]]:
    """Every method but the reference minus the reference; then the same with zero-shot as it.

    Args:
        rows: as `to_dict` has them.
        zero_shot: the row of the plain backbone.
        against: the reference, a method among the rows.
    """
    references = {row["method"]: row["by_seed"] for row in rows}
    references["zero-shot"] = zero_shot["by_seed"]
    tables = []
    for name in dict.fromkeys((against, "zero-shot")):
        others = {row["method"]: row["by_seed"] for row in rows if row["method"] != name}
        table: dict[str, dict[str, Any]] = {method: {} for method in others}
        for key in ACCURACIES:
            values = {method: _of_seeds(by_seed, key) for method, by_seed in others.items()}
            for method, found in differences(values, _of_seeds(references[name], key)).items():
                table[method][key] = None if found is None else found.to_dict()
        if table:
            tables.append({"against": name, "rows": table})
    return tables


def markdown(values: dict[str, Any]) -> str:
    """The tables as Markdown."""
    options = []
    for name, value in values["options"].items():
        if value is not None:
            options.append(f"{name.replace('_', ' ')} {value}")
    return (
        markdown_templates()
        .get_template("comparison.md")
        .render(
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
    )


def options_text(options: Mapping[str, Any]) -> str:
    """Options with their values on one line; those without a value are left out."""
    known = {name: value for name, value in options.items() if value is not None}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in known.items())


def markdown_templates() -> Environment:
    """The templates of `assets/report`, with filters for cells of tables."""
    templates = environment("report", keep_trailing_newline=True)
    templates.filters["spread"] = _cell
    templates.filters["difference"] = lambda found: difference_text(found).replace("*", "\\*")
    templates.filters["percent"] = lambda value: "-" if value is None else f"{value:.1f}"
    return templates


def difference_text(found: Mapping[str, Any] | None) -> str:
    """One of `to_dict`'s differences as a cell: `+1.5 ± 0.5 **`, or `not established`."""
    if found is None:
        return "-"
    text = f"{found['mean']:+.1f}"
    if found["interval"] is not None:
        text += f" ± {found['interval']:.1f}"
    return f"{text} {found['mark'] if found['is_established'] else 'not established'}"


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    if figure["interval"] is None:
        return f"{figure['mean']:.1f}"
    return f"{figure['mean']:.1f} ± {figure['interval']:.1f} ({figure['deviation']:.1f})"


def _csv(values: dict[str, Any]) -> str:
    """One line per method, one column per number; the seeds' own figures are in the JSON only.

    Those of a difference are called `local_minus_pfedmma`, `local_minus_pfedmma_interval`, and so
    on; they are empty in the line of the reference itself.
    """
    lines = []
    for row in values["rows"]:
        flat: dict[str, Any] = {}
        for key, value in row.items():
            if key in (*ACCURACIES, *CLIENT_FIGURES):
                for field in ("mean", "deviation", "interval"):
                    flat[f"{key}_{field}"] = None if value is None else value[field]
            elif key != "by_seed":
                flat[key] = value
        for table in values["differences"]:
            found = table["rows"].get(row["method"], {})
            for key in ACCURACIES:
                flat |= _difference_columns(f"{key}_minus_{table['against']}", found.get(key))
        lines.append(flat)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def _difference_columns(name: str, found: Mapping[str, Any] | None) -> dict[str, Any]:
    columns = {name: None if found is None else found["mean"]}
    for field in ("interval", "p", "corrected_p", "is_established"):
        columns[f"{name}_{field}"] = None if found is None else found[field]
    return columns
