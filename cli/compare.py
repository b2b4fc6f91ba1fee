"""`pfedmma compare`: methods side by side under one protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfedmma_deploy.config import read_changes, read_options
from pfedmma_deploy.errors import UsageError

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
from .output import ACCURACIES, Output, Row

if TYPE_CHECKING:
    from pfedmma_deploy.config import TrainConfig


_PAIRED = "Differences in points, paired by seed, ± 95 %; stars: p <= 0.05, 0.01, 0.001 after Holm"


@with_common_options
@with_output
def compare(
    output: Output,
    methods: Annotated[str, flag('Methods such as "pfedmma,promptfl", or "all".', "NAMES")] = "all",
    seeds: Annotated[str, flag("Seeds, one repetition each: 0-9, or 0,3,7.", "LIST")] = "0-9",
    options: PartitionOptions = NO_PARTITION,
    tune: Annotated[
        bool, switch("--tune", "Choose each method's learning rate on validation images first.")
    ] = False,
    criterion: Annotated[
        str | None,
        flag(
            "What --tune calls best: the harmonic mean of validation accuracy on own and on other "
            "classes, or own classes alone. [default: harmonic]",
            "harmonic|own",
        ),
    ] = None,
    against: Annotated[
        str | None, flag("Hold the others against this method. [default: the first]", "NAME")
    ] = None,
    jobs: Annotated[int, flag("Trials at the same time, a process each.", "N")] = 1,
    preset: Preset = None,
    config: Annotated[Path | None, flag("All other options of `train`.", "FILE.toml")] = None,
    out: Annotated[Path, flag("Where trials and tables are kept.", "DIR")] = Path("comparison"),
) -> None:
    """Compare methods on the same data, backbone, splits and budget.

    Trains every method with every seed and writes Markdown, CSV, JSON and a figure. How many
    minutes that takes is said first, as soon as one trial is done. What is there already is not run
    again: stop with Ctrl-C at any time, and repeat the command to go on. Every method is run with
    one seed before any is with the next. Differences from one method and from zero-shot are given
    with intervals, and called "not established" where the seeds do not show them.

    \b
    Examples:
      pfedmma compare --preset quickstart
      pfedmma compare --methods pfedmma,plora,promptfl --seeds 0-2 --preset quickstart --tune
      pfedmma compare --data my_photos --backbone ViT-B-16 --pretrained openai --out my_table
    """
    from pfedmma_deploy.methods.registry import METHODS, resolve_run
    from pfedmma_deploy.report.compare import compare as run_comparison
    from pfedmma_deploy.report.compare import complete_seeds
    from pfedmma_deploy.report.comparison_files import to_dict, write_comparison

    if criterion is not None and not tune:
        raise UsageError("--criterion says what --tune chooses by: add --tune, or leave it out")
    names = list(METHODS) if methods == "all" else split_names(methods) or []
    numbers = split_numbers("--seeds", seeds, "0-9 or 0,3,7")

    def configure(method: str, seed: int) -> TrainConfig:
        given = {**options, "method": method, "seed": seed}
        return resolve_run(read_options(given, config, preset))

    for warning in read_changes(options, config, preset).warnings:
        output.note(f"warning: {warning}")
    try:
        found = run_comparison(
            names,
            numbers,
            configure,
            out,
            tune=tune,
            criterion=criterion or "harmonic",  # type: ignore[arg-type]  # checked there
            against=against,
            jobs=jobs,
            progress=output.progress,
        )
    except KeyboardInterrupt:
        output.note("Stopped. Repeat the command to go on; what is finished is kept.")
        done = ",".join(map(str, complete_seeds(out, names, numbers)))
        if done:
            output.note(f"Tables of what every method has finished: the same with --seeds {done}")
        raise typer.Exit(130) from None
    files = [str(file) for file in write_comparison(found)]
    values = to_dict(found)
    _print(output, values)
    output.note("Written: " + ", ".join(files))
    output.result({**values, "files": files})


def _print(output: Output, values: dict[str, Any]) -> None:
    from pfedmma_deploy.report.comparison_files import difference_text

    headings = {
        **ACCURACIES,
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
    for table in values["differences"]:
        rows = []
        for method, found in table["rows"].items():
            rows.append([method, *(difference_text(found[key]) for key in ACCURACIES)])
        heads = [f"Minus {table['against']}", *ACCURACIES.values()]
        output.table(
            heads, rows, "Differences in points, paired by seed; stars: p after correction"
        )
    for theirs in values["published"]:
        figures = ", ".join(f"{key} {theirs[key]}" for key in ("local", "base", "novel", "hm3"))
        output.say(f"Published (theirs): {theirs['method']}: {figures} ({theirs['source']})")
