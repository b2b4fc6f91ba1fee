"""`pfedmma data check`: what is wrong with a data set, before an hour of training."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from pfedmma_deploy.errors import UsageError

from .data_partition import Heatmap, show_heatmap
from .options import (
    NO_PARTITION,
    DataRoot,
    PartitionOptions,
    Pretrained,
    Seed,
    flag,
    with_output,
    with_partition,
)
from .output import Output

if TYPE_CHECKING:
    from pfedmma_deploy.data.doctor_data import DataReport
    from pfedmma_deploy.evaluation.zero_shot import Sanity
    from pfedmma_deploy.types import Dataset

_MARKS = {"fatal": "FATAL", "error": "ERROR", "warning": "warning"}


@with_partition
@with_output
def check(
    output: Output,
    data: Annotated[str, typer.Argument(metavar="DATA", help="Data set, sample or folder.")],
    partition: PartitionOptions = NO_PARTITION,
    seed: Seed = None,
    backbone: Annotated[
        str | None, flag("Also test zero-shot, for example with pfedmma-tiny.", "NAME")
    ] = None,
    pretrained: Pretrained = None,
    prompt: Annotated[
        str, flag("Text around a class name, with --backbone.", "TEXT")
    ] = "a photo of a {}.",
    heatmap: Heatmap = None,
    data_root: DataRoot = None,
) -> None:
    """Say what is wrong with a data set: files, labels, names, copies, balance.

    Without options of a partition, client folders count as clients, or else all images as those
    of one. Every image is read once; large folders remember it.

    Exit code 1 where something would stop training (FATAL) or make its result wrong (ERROR), 0
    where there are warnings at most.

    \b
    Examples:
      pfedmma data check my_photos
      pfedmma data check my_photos --backbone pfedmma-tiny
      pfedmma data check my_photos --partition dirichlet --clients 5 --heatmap clients.png
      pfedmma data check my_photos --clients-file clients.toml --json
    """
    if backbone is None and pretrained is not None:
        raise UsageError("--pretrained belongs to --backbone: name both, or neither")
    from pfedmma_deploy.config import PartitionConfig
    from pfedmma_deploy.data.datasets import load_dataset
    from pfedmma_deploy.data.doctor_data import check_data

    dataset = load_dataset(data, root=data_root, progress=output.progress)
    wanted = PartitionConfig.from_options(partition) if partition or seed is not None else None
    found = check_data(dataset, wanted, seed=seed or 0, progress=output.progress)
    sanity = None
    if backbone is not None:
        from pfedmma_deploy.backbone.loading import load_backbone
        from pfedmma_deploy.evaluation.zero_shot import check_zero_shot

        model = load_backbone(backbone, pretrained)
        sanity = check_zero_shot(model, dataset, prompt, progress=output.progress)
        found = found.add(sanity.problems)
    _show(dataset, found, sanity, output)
    federation = found.federation
    if federation is not None:
        show_heatmap(federation, heatmap, dataset.name, output)
    problems = []
    for problem in found.problems:
        values = dataclasses.asdict(problem)
        del values["title"]
        problems.append(values)
    output.result(
        {
            "data": data,
            "images": found.images,
            "classes": list(dataset.class_names),
            "clients": federation and [client.id for client in federation.clients],
            "problems": problems,
            "zero_shot": sanity
            and {name: getattr(sanity, name) for name in ("accuracy", "chance", "images")},
            "heatmap": str(heatmap) if heatmap and federation else None,
        }
    )
    if not found.is_good:
        raise typer.Exit(1)


def _show(dataset: Dataset, found: DataReport, sanity: Sanity | None, output: Output) -> None:
    for problem in found.problems:
        output.say(f"{_MARKS[problem.level]}: {problem.title} ({problem.count:,})")
        for example in problem.examples:
            output.say(f"    {example}")
        if problem.count > len(problem.examples):
            output.say(f"    and {problem.count - len(problem.examples):,} more")
        output.say(_indent(problem.advice, output))
    if sanity is not None:
        output.say(
            f"Zero-shot accuracy {sanity.accuracy:.1f} % on {sanity.images:,} images"
            f" (chance {sanity.chance:.1f} %)"
        )
    counts = []
    for level, word in (("fatal", "fatal"), ("error", "errors"), ("warning", "warnings")):
        counts.append(f"{sum(problem.level == level for problem in found.problems)} {word}")
    output.say(
        f"{dataset.name}: {found.images:,} images of {len(dataset.class_names)} classes: "
        + (", ".join(counts) if found.problems else "nothing wrong found")
    )


def _indent(text: str, output: Output) -> str:
    """Folded at the width of a terminal; in a pipe one line, which can be searched."""
    if not output.stdout.isatty():
        return f"  {text}"
    width = shutil.get_terminal_size().columns
    return textwrap.fill(text, width, initial_indent="  ", subsequent_indent="  ")
