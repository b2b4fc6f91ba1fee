"""`pfedmma compare`: methods side by side under one protocol."""

from __future__ import annotations

from collections.abc import Sequence, Sized
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
    methods: Annotated[
        str | None,
        flag(
            'Methods such as "pfedmma,promptfl", or "all". [default: all, or the protocol\'s]',
            "NAMES",
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        flag(
            "A paper's table: pfedmma-paper, pfedmma-domainnet or pfedmma-office; --data is then "
            "the folder that holds its data sets.",
            "NAME",
        ),
    ] = None,
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
      pfedmma compare --protocol pfedmma-paper --data /data --out paper
    """
    if criterion is not None and not tune:
        raise UsageError("--criterion says what --tune chooses by: add --tune, or leave it out")
    for given, value in (("--tune", tune), ("--preset", preset)):
        if protocol is not None and value:
            raise UsageError(f"--protocol decides what {given} does: leave out one of them")
    names = _all_methods(output) if methods == "all" else split_names(methods)
    numbers = split_numbers("--seeds", seeds, "0-9 or 0,3,7")
    for warning in read_changes(options, config, preset).warnings:
        output.note(f"warning: {warning}")
    common: dict[str, Any] = {"against": against, "jobs": jobs, "progress": output.progress}
    try:
        if protocol is not None:
            common |= {"config_file": config, "methods": names}
            values = _run_protocol(output, protocol, numbers, options, out, common)
        else:
            names = _all_methods(output) if names is None else names
            common |= {"tune": tune, "criterion": criterion or "harmonic"}
            values = _run(output, names, numbers, (options, config, preset), out, common)
    except KeyboardInterrupt:
        output.note("Stopped. Repeat the command to go on; what is finished is kept.")
        raise typer.Exit(130) from None
    output.note("Written: " + ", ".join(values["files"]))
    output.result(values)


def _all_methods(output: Output) -> list[str]:
    """The names of all methods; what cannot be used of installed packages is said."""
    from pfedmma_deploy.methods.registry import known_methods, method_plugins

    for _, sentence in method_plugins().problems:
        output.note(f"warning: {sentence}")
    return list(known_methods())


def _run(
    output: Output,
    names: list[str],
    seeds: list[int],
    given: tuple[PartitionOptions, Path | None, str | None],
    out: Path,
    common: dict[str, Any],
) -> dict[str, Any]:
    """The comparison's values, after its tables are printed."""
    from pfedmma_deploy.methods.registry import resolve_run
    from pfedmma_deploy.report.compare import compare as run_comparison
    from pfedmma_deploy.report.comparison_files import to_dict, write_comparison

    options, config, preset = given

    def configure(method: str, seed: int) -> TrainConfig:
        flags = {**options, "method": method, "seed": seed}
        return resolve_run(read_options(flags, config, preset))

    found = run_comparison(names, seeds, configure, out, **common)
    values = to_dict(found)
    files = [str(file) for file in write_comparison(found)]
    _print(output, values)
    return {**values, "files": files}


def _run_protocol(
    output: Output,
    protocol: str,
    seeds: list[int],
    options: PartitionOptions,
    out: Path,
    common: dict[str, Any],
) -> dict[str, Any]:
    """The protocol's values, after its tables are printed."""
    from pfedmma_deploy.report.protocol_files import protocol_dict, write_protocol
    from pfedmma_deploy.report.protocols import find_protocol, run_protocol

    found = run_protocol(find_protocol(protocol), seeds, options, out, **common)
    values = protocol_dict(found)
    files = [str(file) for file in write_protocol(found)]
    _print_protocol(output, values)
    return {**values, "files": files}


def _print_protocol(output: Output, values: dict[str, Any]) -> None:
    from pfedmma_deploy.report.comparison_files import options_text
    from pfedmma_deploy.report.protocol_files import PUBLISHED_FIGURES, beside_published

    heads = ["Accuracy in %"]
    for key in PUBLISHED_FIGURES:
        heads += [ACCURACIES[key], "theirs"] if values["published"] else [ACCURACIES[key]]
    rows: list[Row] = []
    for row in beside_published(values):
        cells: list[str | None] = [row["method"]]
        for key in PUBLISHED_FIGURES:
            cells.append(_cell(row["ours"][key]) if row["ours"] else None)
            if values["published"]:
                cells.append(f"{row['theirs'][key]:.2f}" if row["theirs"] else None)
        rows.append(cells)
    sets = _count(values["datasets"], "data set")
    output.table(heads, rows, f"{values['protocol']}, mean of {sets}, {_repetitions(values)}")
    _print_differences(output, values["mean"]["differences"])
    if values["left_out"]:
        output.say(values["left_out"])
    if values["changed"]:
        output.say(f"Not as in the protocol: {options_text(values['changed'])}")
    output.say(values["note"])


def _print(output: Output, values: dict[str, Any]) -> None:
    headings = {
        **ACCURACIES,
        "worst_local": "Worst local",
        "worst_all": "Worst all",
        "losing_share": "Losing",
    }
    rows: list[Row] = [
        [
            row["method"],
            *(_cell(row[key]) for key in headings),
            f"{row['bytes_up_per_client_round']:,}",
        ]
        for row in values["rows"]
    ]
    heads = ["Accuracy in %", *headings.values(), "Bytes up"]
    output.table(heads, rows, f"{values['options']['data']}, {_repetitions(values)}")
    _print_differences(output, values["differences"])
    for theirs in values["published"]:
        figures = ", ".join(f"{key} {theirs[key]}" for key in ("local", "base", "novel", "hm3"))
        output.say(f"Published (theirs): {theirs['method']}: {figures} ({theirs['source']})")


def _count(items: Sized, noun: str) -> str:
    return f"{len(items)} {noun}{'s' * (len(items) != 1)}"


def _repetitions(values: dict[str, Any]) -> str:
    interval = ", ± 95 % interval" if len(values["seeds"]) > 1 else ""
    return _count(values["seeds"], "seed") + interval


def _cell(figure: dict[str, float | None] | None) -> str | None:
    if figure is None:
        return None
    interval = figure["interval"]
    return f"{figure['mean']:.1f}" + ("" if interval is None else f" ± {interval:.1f}")


def _print_differences(output: Output, tables: Sequence[dict[str, Any]]) -> None:
    from pfedmma_deploy.report.comparison_files import difference_text

    for table in tables:
        rows: list[Row] = []
        for method, found in table["rows"].items():
            rows.append([method, *(difference_text(found[key]) for key in ACCURACIES)])
        output.table([f"Minus {table['against']}", *ACCURACIES.values()], rows, _PAIRED)
