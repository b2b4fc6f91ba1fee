"""A comparison as files: Markdown for people, CSV and JSON for programs, a figure."""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pfedmma_deploy.evaluation.accuracy import Accuracy
from pfedmma_deploy.report.compare import Comparison, best_rate
from pfedmma_deploy.report.statistics import Spread, spread
from pfedmma_deploy.report.trial import Result
from pfedmma_deploy.store.files import json_bytes, write_bytes

ACCURACIES = ("local", "base", "novel", "hm3", "hm2")
HEADINGS = ("Local", "Base", "Novel", "HM3", "HM2")
SHARED_OPTIONS = (
    "data", "backbone", "pretrained", "clients", "classes", "partition", "dirichlet_beta", "shots",
    "rounds", "local_epochs", "clients_per_round", "batch_size", "transform", "logit_scale",
    "prompt",
)  # fmt: skip
LIBRARIES = ("pfedmma-deploy", "torch", "open_clip_torch", "numpy")


def write_comparison(
    comparison: Comparison, published: Sequence[dict[str, Any]] = ()
) -> list[Path]:
    """Write `compare.md`, `.csv`, `.json` and `.png` into the comparison's folder.

    Args:
        comparison: what was measured.
        published: figures of papers for the same protocol, shown apart and marked as theirs.
    """
    from pfedmma_deploy.report.comparison_figure import draw

    values = to_dict(comparison, published)
    files = {
        "compare.json": json_bytes(values),
        "compare.csv": _csv(values).encode(),
        "compare.md": markdown(values).encode(),
        "compare.png": draw(values),
    }
    for name, data in files.items():
        write_bytes(comparison.folder / name, data)
    return [comparison.folder / name for name in files]


def to_dict(comparison: Comparison, published: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """JSON-ready: options, one row per method, the grids; accuracies in percent."""
    first = comparison.results[comparison.methods[0]][0]
    config = comparison.config.to_options()
    shared = {name: config[name] for name in SHARED_OPTIONS}
    shared["data"] = Path(shared["data"]).name
    return {
        "options": shared,
        "seeds": list(comparison.seeds),
        "rows": [_row(name, comparison.results[name]) for name in comparison.methods],
        "zero_shot": None if first.zero_shot is None else first.zero_shot.to_dict(),
        "tuning": {
            name: {
                "grid": [[one.lr, one.validation] for one in results],
                "chosen": best_rate(results),
            }
            for name, results in comparison.tuning.items()
        },
        "published": list(published),
        "environment": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            **{name: version(name) for name in LIBRARIES},
        },
    }


def _row(name: str, results: Sequence[Result]) -> dict[str, Any]:
    accuracies = [one.accuracy or Accuracy(None, None, None) for one in results]
    figures = {key: spread([one.to_dict()[key] for one in accuracies]) for key in ACCURACIES}
    figures["worst_local"] = spread([one.worst_local for one in results])
    return {
        "method": name,
        "lr": results[0].lr,
        **{key: _spread_dict(found) for key, found in figures.items()},
        "parameters_trained": results[0].trained,
        "parameters_shared": results[0].shared,
        "bytes_up_per_client_round": results[0].bytes_up,
        "bytes_down_per_client_round": results[0].bytes_down,
        "seconds": sum(one.seconds for one in results) / len(results),
    }


def _spread_dict(found: Spread | None) -> dict[str, float | None] | None:
    if found is None:
        return None
    return {"mean": found.mean, "deviation": found.deviation, "interval": found.interval}


def markdown(values: dict[str, Any]) -> str:
    """The tables as Markdown."""
    options = ", ".join(
        f"{name.replace('_', ' ')} {value}"
        for name, value in values["options"].items()
        if value is not None
    )
    seeds = ", ".join(map(str, values["seeds"]))
    lines = [
        "# Comparison",
        "",
        f"{options}; seeds {seeds}.",
        "",
        "Accuracy in percent, mean over clients, then over seeds; after ± half the 95 % interval "
        "of the mean over seeds (Student's t), in brackets the standard deviation. Local: each "
        "client's own classes among all base names; base: all classes trained on; novel: "
        "classes never seen, among the novel names; HM3: harmonic mean of the three, HM2: of base "
        "and novel. Worst: local accuracy of the worst client. Bytes: per client and round, as "
        "measured. Seconds: training, mean over seeds.",
        "",
    ]
    heads = ["Method", *HEADINGS, "Worst", "Trained", "Shared", "Bytes up", "Bytes down", "Seconds"]
    rows = [
        [
            row["method"],
            *(_cell(row[key]) for key in ACCURACIES),
            _cell(row["worst_local"]),
            f"{row['parameters_trained']:,}",
            f"{row['parameters_shared']:,}",
            f"{row['bytes_up_per_client_round']:,}",
            f"{row['bytes_down_per_client_round']:,}",
            f"{row['seconds']:.0f}",
        ]
        for row in values["rows"]
    ]
    lines += _table(heads, rows)
    if values["published"]:
        lines += ["", "## Published by the papers' authors (theirs, not measured here)", ""]
        lines += _table(
            ["Method", *HEADINGS[:4], "Source"],
            [
                [one["method"], *(_plain(one.get(key)) for key in ACCURACIES[:4]), one["source"]]
                for one in values["published"]
            ],
        )
    if values["tuning"]:
        lines += ["", "## Learning rates", ""]
        lines += [
            "Chosen on the clients' validation images with the first seed: learning rate, then "
            "mean validation accuracy in percent.",
            "",
        ]
        lines += _table(
            ["Method", "Grid", "Chosen"],
            [
                [
                    name,
                    ", ".join(
                        f"{lr:.3g}: {'diverged' if v is None else f'{v:.1f}'}"
                        for lr, v in one["grid"]
                    ),
                    f"{one['chosen']:.3g}",
                ]
                for name, one in values["tuning"].items()
            ],
        )
    environment = ", ".join(f"{name} {value}" for name, value in values["environment"].items())
    lines += ["", "![personalization against generalization](compare.png)", "", environment + "."]
    return "\n".join(lines) + "\n"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _cell(figure: dict[str, float | None] | None) -> str:
    if figure is None:
        return "-"
    text = f"{figure['mean']:.1f}"
    if figure["interval"] is None:
        return text
    return f"{text} ± {figure['interval']:.1f} ({figure['deviation']:.1f})"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _csv(values: dict[str, Any]) -> str:
    """One line per method; the parts of an accuracy as columns of their own."""
    lines = []
    for row in values["rows"]:
        flat: dict[str, Any] = {}
        for key, value in row.items():
            if key in ACCURACIES or key == "worst_local":
                for part in ("mean", "deviation", "interval"):
                    flat[f"{key}_{part}"] = None if value is None else value[part]
            else:
                flat[key] = value
        lines.append(flat)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def read_comparison(folder: Path) -> dict[str, Any]:
    """What `compare.json` holds."""
    found: dict[str, Any] = json.loads((folder / "compare.json").read_text("utf-8"))
    return found
