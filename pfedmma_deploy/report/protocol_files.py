"""A protocol's run as files: means over data sets beside the paper's, and a table by data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pfedmma_deploy.report.comparison_files import (
    ACCURACIES,
    accuracy_row,
    difference_tables,
    markdown_templates,
    options_text,
    to_dict,
    write_comparison,
)
from pfedmma_deploy.report.protocols import ProtocolRun, missing_sentence
from pfedmma_deploy.report.published import published_for
from pfedmma_deploy.store.files import json_bytes, write_bytes

PUBLISHED_FIGURES = ("local", "base", "novel", "hm3")


def write_protocol(found: ProtocolRun) -> list[Path]:
    """Write `protocol.md` and `.json`, and the files of each data set's comparison."""
    values = protocol_dict(found)
    written = [found.folder / "protocol.md", found.folder / "protocol.json"]
    write_bytes(written[0], protocol_markdown(values).encode())
    write_bytes(written[1], json_bytes(values))
    for comparison in found.comparisons.values():
        written += write_comparison(comparison)
    return written


def protocol_dict(found: ProtocolRun) -> dict[str, Any]:
    """JSON-ready: `datasets` by name as `comparison_files.to_dict` has them; accuracies in percent.

    `mean` has the same rows and differences of the means over data sets, seed by seed: of HM3, too,
    the mean of the data sets' own, as the papers have it. `published` are the paper's figures,
    which are means over all of its data sets.
    """
    tables = {name: to_dict(one, published=[]) for name, one in found.comparisons.items()}
    first = next(iter(tables.values()))
    against = next(iter(found.comparisons.values())).against
    rows = []
    for row in first["rows"]:
        method = row["method"]
        of_method = [_row_of(table, method)["by_seed"] for table in tables.values()]
        rows.append({"method": method, **_mean_row(of_method)})
    zero_shot = _mean_row([table["zero_shot"]["by_seed"] for table in tables.values()])
    protocol = found.protocol
    return {
        "protocol": protocol.name,
        "title": protocol.title,
        "source": protocol.source,
        "note": protocol.note,
        "seeds": first["seeds"],
        "mean": {
            "rows": rows,
            "zero_shot": zero_shot,
            "differences": difference_tables(rows, zero_shot, against),
        },
        "published": published_for(protocol.name),
        "missing": dict(found.missing),
        "left_out": missing_sentence(protocol, found.missing) if found.missing else None,
        "changed": dict(found.changed),
        "warnings": list(found.warnings),
        "datasets": tables,
    }


def protocol_markdown(values: dict[str, Any]) -> str:
    """The tables as Markdown."""
    first = next(iter(values["datasets"].values()))
    options = {name: value for name, value in first["options"].items() if name != "data"}
    return (
        markdown_templates()
        .get_template("protocol.md")
        .render(
            {
                **values,
                "options": options_text(options),
                "changes": options_text(values["changed"]),
                "beside": beside_published(values),
                "accuracies": ACCURACIES,
                "figures": PUBLISHED_FIGURES,
                "environment": first["environment"],
            }
        )
    )


def beside_published(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """By method `ours` (a row of means, or None) and `theirs` (figures, or None)."""
    ours = {row["method"]: row for row in values["mean"]["rows"]}
    theirs = {row["method"]: row for row in values["published"]}
    rows = []
    for method in dict.fromkeys((*ours, *theirs)):
        rows.append({"method": method, "ours": ours.get(method), "theirs": theirs.get(method)})
    return rows


def _row_of(table: Mapping[str, Any], method: str) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in table["rows"] if row["method"] == method)
    return found


def _mean_row(of_datasets: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The mean over data sets of every seed's figures; None where a data set lacks one."""
    by_seed = []
    for same_seed in zip(*of_datasets, strict=True):
        figures: dict[str, Any] = {"seed": same_seed[0]["seed"]}
        for key in ACCURACIES:
            known = [one[key] for one in same_seed if one[key] is not None]
            figures[key] = fmean(known) if len(known) == len(same_seed) else None
        by_seed.append(figures)
    return accuracy_row(by_seed)
