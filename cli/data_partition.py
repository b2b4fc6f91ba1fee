"""`pfedmma data partition`: who would hold which images, as a file to edit and train with."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from pfedmma_deploy.types import Split

from .options import (
    NO_PARTITION,
    DataRoot,
    PartitionOptions,
    Seed,
    flag,
    with_output,
    with_partition,
)
from .output import Output

if TYPE_CHECKING:
    from pfedmma_deploy.types import Federation

Heatmap = Annotated[
    Path | None, flag("Picture of training images by client and class.", "FILE.png")
]


@with_partition
@with_output
def partition(
    output: Output,
    data: Annotated[str, typer.Argument(metavar="DATA", help="Data set, sample or folder.")],
    partition: PartitionOptions = NO_PARTITION,
    seed: Seed = None,
    out: Annotated[Path | None, flag("Write the partition here.", "FILE.toml")] = None,
    heatmap: Heatmap = None,
    data_root: DataRoot = None,
) -> None:
    """Partition a data set among clients and show who holds what.

    `pfedmma train` with the same options partitions the same way. With --out, the partition becomes
    a file that can be edited, kept with a paper, and trained with: --clients-file.

    \b
    Examples:
      pfedmma data partition cifar10-sample --partition dirichlet --clients 5 --out clients.toml
      pfedmma data partition domains-sample --partition domain --clients 6 --heatmap clients.png
      pfedmma data partition domains-sample --partition leave-one-domain-out --clients 5
        --unseen-domain sketch --classes all
    """
    from pfedmma_deploy.config import PartitionConfig
    from pfedmma_deploy.data.clients_file import write_clients
    from pfedmma_deploy.data.datasets import load_dataset
    from pfedmma_deploy.data.federation import build_federation

    chosen = PartitionConfig.from_options(partition)
    # For the record; options that are not set are left out.
    made_with: dict[str, Any] = {"partition": chosen.scheme, "seed": seed or 0}
    for name, value in dataclasses.asdict(chosen).items():
        if name != "scheme" and value is not None:
            made_with[name] = value
    dataset = load_dataset(data, root=data_root, progress=output.progress)
    federation = build_federation(dataset, chosen, seed=seed or 0)
    if out is not None:
        write_clients(federation, out, made_with)
    for warning in federation.warnings:
        output.note(f"warning: {warning}")
    _show_federation(federation, output)
    show_heatmap(federation, heatmap, f"{dataset.name}: {chosen.scheme}", output)
    if out is not None:
        output.say(f"Partition: {out}")
        output.note(f"Next: pfedmma train --data {data} --clients-file {out}")
    output.result(
        {
            "data": data,
            **made_with,
            **_sizes(federation),
            "clients_file": None if out is None else str(out),
            "heatmap": None if heatmap is None else str(heatmap),
        }
    )


def _sizes(federation: Federation) -> dict[str, Any]:
    clients = []
    for client in federation.clients:
        row: dict[str, Any] = {"id": client.id, "classes": federation.names(client.classes)}
        for split in get_args(Split):
            row[split] = len(getattr(client, split))
        clients.append(row)
    return {
        "clients": clients,
        "base": federation.names(federation.base),
        "novel": federation.names(federation.novel),
        "base_test": len(federation.base_test),
        "novel_test": len(federation.novel_test),
        "warnings": list(federation.warnings),
    }


def _show_federation(federation: Federation, output: Output) -> None:
    """What local, base and novel accuracy will be measured on."""
    from pfedmma_deploy.report.heatmap import count_holdings, draw_blocks

    clients = federation.clients
    train, val, test = (sum(len(getattr(c, s)) for c in clients) for s in get_args(Split))
    output.say(
        f"{federation.dataset.name}: {len(clients)} clients with {train:,} images to train on,"
        f" {val:,} to validate, {test:,} to test"
    )
    width = shutil.get_terminal_size().columns
    for line in draw_blocks(count_holdings(federation), width):
        output.say(line)
    output.say(f"Base: {len(federation.base_test):,} test images of {len(federation.base)} classes")
    if federation.novel:
        what = "classes that nobody trains on"
        if federation.unseen_domain is not None:
            what = f"classes of the unseen domain '{federation.unseen_domain}'"
        output.say(
            f"Novel: {len(federation.novel_test):,} test images of {len(federation.novel)} {what}"
        )


def show_heatmap(federation: Federation, file: Path | None, title: str, output: Output) -> None:
    """Draws the picture where a file is named."""
    if file is None:
        return
    from pfedmma_deploy.report.heatmap import count_holdings, draw_heatmap

    draw_heatmap(count_holdings(federation), file, f"{title}, {len(federation.clients)} clients")
    output.say(f"Heat map: {file}")
