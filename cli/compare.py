"""`pfedmma compare`: methods side by side under one protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfedmma_deploy.config import read_changes, read_options

from .options import (
    NO_PARTITION,
    PartitionOptions,
    Preset,
    flag,
    split_names,
    split_numbers,
    switch,
    with_common_options,
    with_output,
)
from .output import Output, Row

if TYPE_CHECKING:
    from pfedmma_deploy.config import TrainConfig


@with_common_options
@with_output
def compare(
    output: Output,
    methods: Annotated[str, flag('Methods such as "pfedmma,promptfl", or "all".', "NAMES")] = "all",
    seeds: Annotated[str, flag("Seeds, one repetition each.", "LIST")] = "0,1,2",
    options: PartitionOptions = NO_PARTITION,
    tune: Annotated[
        bool, switch("--tune", "Choose each method's learning rate on validation images first.")
    ] = False,
    jobs: Annotated[int, flag("Trials at the same time, a process each.", "N")] = 1,
    preset: Preset = None,
    config: Annotated[Path | None, flag("All other options of `train`.", "FILE.toml")] = None,
    out: Annotated[Path, flag("Where trials and tables are kept.", "DIR")] = Path("comparison"),
) -> None:
    """Compare methods on the same data, backbone, splits and budget.

    Trains every method with every seed and writes Markdown, CSV, JSON and a figure. What is there
    already is not run again: stop with Ctrl-C at any time, and repeat the command to go on.

    \b
    Examples:
      pfedmma compare --preset quickstart
      pfedmma compare --methods pfedmma,plora,promptfl --seeds 0,1 --preset quickstart --tune
      pfedmma compare --data my_photos --backbone ViT-B-16 --pretrained openai --out my_table
    """
    from pfedmma_deploy.methods.registry import METHODS, resolve_run
    from pfedmma_deploy.report.compare import compare as run_comparison
    from pfedmma_deploy.report.comparison_files import to_dict, write_comparison

    names = list(METHODS) if methods == "all" else split_names(methods) or []

    def configure(method: str, seed: int) -> TrainConfig:
        given = {**options, "method": method, "seed": seed}
        return resolve_run(read_options(given, config, preset))

    for warning in read_changes(options, config, preset).warnings:
        output.note(f"warning: {warning}")
    try:
        found = run_comparison(
            names,
            split_numbers("--seeds", seeds, "0,1,2"),
            configure,
            out,
            tune=tune,
            jobs=jobs,
            progress=output.progress,
        )
    except KeyboardInterrupt:
        output.note("Stopped. Repeat the command to go on; what is finished is kept.")
        raise typer.Exit(130) from None
    files = [str(file) for file in write_comparison(found)]
    values = to_dict(found)
    _print(output, values)
    output.note("Written: " + ", ".join(files))
    output.result({**values, "files": files})


def _print(output: Output, values: dict[str, Any]) -> None:
    headings = {
        "local": "Local",
        "base": "Base",
        "novel": "Novel",
        "all": "All",
        "hm3": "HM3",
        "hm2": "HM2",
        "worst_local": "Worst local",
        "worst_all": "Worst all",
        "losing_share": "Losing",
    }

    def cell(figure: dict[str, float | None] | None) -> str | None:
        if figure is None:
            return None
        interval = figure["interval"]
        return f"{figure['mean']:.1f}" + ("" if interval is None else f" ± {interval:.1f}")

    rows: list[Row] = [
        [
            row["method"],
            *(cell(row[key]) for key in headings),
            f"{row['bytes_up_per_client_round']:,}",
        ]
        for row in values["rows"]
    ]
    heads = ["Accuracy in %", *headings.values(), "Bytes up"]
    title = f"{values['options']['data']}, {len(values['seeds'])} seeds, ± 95 % interval"
    output.table(heads, rows, title)
    for theirs in values["published"]:
        figures = ", ".join(f"{key} {theirs[key]}" for key in ("local", "base", "novel", "hm3"))
        output.say(f"Published (theirs): {theirs['method']}: {figures} ({theirs['source']})")
