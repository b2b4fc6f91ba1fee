"""`pfedmma report`: what is known of runs, on one page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import flag, open_run, with_output
from .output import Output, Row


@with_output
def report(
    output: Output,
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="Run folders; several are compared. [default: the newest in runs/]",
        ),
    ] = None,
    out: Annotated[Path, flag("The page.", "FILE.html")] = Path("report.html"),
) -> None:
    """Write one page about a run: gain, cost, who loses, and how certain that is.

    Every client beside zero-shot with intervals; what the shared part contributes; how clients
    differ; cost, training, calibration, provenance. The page needs no network and prints. Test
    images are scored up to three times per client, so it takes longer than `pfedmma evaluate`.

    \b
    Examples:
      pfedmma report
      pfedmma report runs/pfedmma runs/plora --out comparison.html
      pfedmma report runs/sites --json > figures.json
    """
    opened = [open_run(folder) for folder in runs] if runs else [open_run(None)]
    from pfedmma_deploy.report.page import render_page
    from pfedmma_deploy.report.run_report import report_runs
    from pfedmma_deploy.store.files import write_bytes

    started = time.perf_counter()
    values = report_runs(opened, output.progress)
    write_bytes(out, render_page(values).encode())
    _print(output, values)
    output.note(f"Written: {out}")
    output.result({**values, "out": str(out), "seconds": time.perf_counter() - started})


def _print(output: Output, values: dict[str, Any]) -> None:
    rows: list[Row] = []
    for run in values["runs"]:
        answer = run["answer"]
        row: list[str | float | int | None] = [run["name"]]
        for key in ("local", "base", "novel", "all"):
            gain = answer["gain"][key]
            row += [answer["personalized"][key], None if gain is None else f"{gain['mean']:+.1f}"]
        rows.append([*row, f"{answer['losing_share']:.0f}"])
    figures = ["Local", "Gain", "Base", "Gain", "Novel", "Gain", "All", "Gain"]
    output.table(["Run", *figures, "Losing"], rows, "Accuracy in %, means over clients")
