"""A report as one HTML page without anything outside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from markupsafe import Markup

from pfedmma_deploy import __version__
from pfedmma_deploy.report.figures import (
    MOST_ROWS,
    draw,
    draw_cka,
    draw_curves,
    draw_pairs,
    draw_picture,
    draw_reliability,
    draw_strength,
)
from pfedmma_deploy.report.measures import spread_out
from pfedmma_deploy.templates import environment

ACCURACIES: Final = {
    "local": "own classes",
    "all": "all classes",
    "base": "base classes",
    "novel": "novel classes",
}
VARIANTS: Final = {
    "zero_shot": "zero-shot",
    "own": "personalized",
    "zeroed": "shared part set to zero",
    "initial": "shared part of round 0",
    "another": "another client's shared part",
}
SIDES: Final = {
    "zero_shot": "zero-shot",
    "personalized": "personalized",
    "scaled": "personalized, own temperature",
}
MOST_CELLS: Final = 30
"""Rows and columns of a heat map."""
MOST_LINES: Final = 60
"""Rows of a table with one row per client."""
UNKNOWN: Final = "\N{EN DASH}"
_UNITS: Final = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def render_page(report: Mapping[str, Any]) -> str:
    """HTML of a report, a result of `run_report.report_runs`; names in it cannot become markup."""
    made = environment("report", autoescape=True)
    made.filters.update(number=number, signed=signed, size=size, limits=limits)
    return made.get_template("page.html").render(
        report=report,
        drawings=[_drawings(run) for run in report["runs"]],
        holdings=[_holdings(run["clients"]["holdings"]) for run in report["runs"]],
        accuracies=ACCURACIES,
        variants=VARIANTS,
        sides=SIDES,
        most_rows=MOST_ROWS,
        most_lines=MOST_LINES,
        version=__version__,
    )


def _drawings(run: Mapping[str, Any]) -> dict[str, Markup]:
    """Every plot of one run by its name in the template; what has nothing to show is left out."""
    name, answer, found = run["name"], run["answer"], {}
    rows = min(len(answer["clients"]), MOST_ROWS)
    for key, words in ACCURACIES.items():
        if answer["personalized"][key] is not None:
            alt = f"{name}: accuracy on {words}, zero-shot and personalized, by client"
            found[key] = draw(draw_pairs, answer, key, size=(4.6, 0.9 + 0.3 * rows), alt=alt)
    if run["strength"] is not None:
        alt = f"{name}: mean accuracies by strength"
        found["strength"] = draw(draw_strength, run["strength"]["mean"], ACCURACIES, alt=alt)
    alignment, training = run["alignment"], run["training"]
    if any(_has_cka(one["features"]) for one in alignment["variants"].values()):
        alt = f"{name}: linear CKA of image and text tower by block"
        found["cka"] = draw(draw_cka, alignment["variants"], VARIANTS, alt=alt)
    if alignment["picture"] is not None:
        for state in ("before", "after"):
            alt = f"{name}: image and text features {state} training, by class"
            picture = alignment["picture"]
            found[state] = draw(draw_picture, picture, state, size=(4.6, 4.2), alt=alt)
    for key, label in (("loss", "training loss"), ("val_accuracy", "validation accuracy, %")):
        if any(record[key] is not None for record in training["rounds"]):
            alt = f"{name}: {label} by round, per client and mean"
            found[key] = draw(draw_curves, training, key, label, alt=alt)
    alt = f"{name}: reliability diagram"
    bins = run["calibration"]["reliability"]
    found["reliability"] = draw(draw_reliability, bins, SIDES, alt=alt)
    return found


def _has_cka(features: Mapping[str, Any] | None) -> bool:
    return features is not None and any(value is not None for value in features["cka"])


def _holdings(held: Mapping[str, Any]) -> dict[str, Any]:
    """Rows and columns of the heat map: all, or as many as can be read, evenly spaced."""
    rows = spread_out(range(len(held["clients"])), MOST_CELLS)
    columns = spread_out(range(len(held["classes"])), MOST_CELLS)
    lines = []
    for row in rows:
        counts = [held["images"][row][column] for column in columns]
        lines.append((held["clients"][row], held["domains"][row], counts))
    return {
        "columns": [held["classes"][column] for column in columns],
        "rows": lines,
        "most": max((max(counts, default=0) for _, _, counts in lines), default=0) or 1,
        "has_domains": len(set(held["domains"])) > 1,
        "is_cut": len(rows) < len(held["clients"]) or len(columns) < len(held["classes"]),
    }


def number(value: float | None, digits: int = 1) -> str:
    """A figure with its digits; an en dash where it is not known."""
    # Adding zero makes zero of minus zero.
    return UNKNOWN if value is None else _minus(f"{round(value, digits) + 0.0:,.{digits}f}")


def signed(value: float | None, digits: int = 1) -> str:
    """A change with its sign, zero without one."""
    if value is None or not round(value, digits):
        return number(value, digits)
    return _minus(f"{value:+,.{digits}f}")


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def size(count: float | None) -> str:
    """Bytes in a unit that leaves few digits."""
    if count is None:
        return UNKNOWN
    for unit, factor in _UNITS:
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} bytes"


def limits(interval: Sequence[float] | None) -> str:
    """An interval, whole percents."""
    return "" if interval is None else f"{interval[0]:.0f} to {interval[1]:.0f}"
