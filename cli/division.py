"""Options that decide who holds which images, for the commands that divide data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from pfedmma_deploy.config import Classes, Partition, TrainConfig
from pfedmma_deploy.errors import UsageError

if TYPE_CHECKING:
    from pfedmma_deploy.data.division import Division

PARTITIONS = "|".join(get_args(Partition))
_DEFAULTS = {name: field.default for name, field in TrainConfig.__dataclass_fields__.items()}

Clients = Annotated[
    int | None,
    typer.Option(metavar="N", help=f"Number of clients. [default: {_DEFAULTS['clients']}]"),
]
ClassesOption = Annotated[
    str | None,
    typer.Option(
        "--classes",
        metavar="|".join(get_args(Classes)),
        help="Train on the first half of the classes, or on all. [default: base-novel]",
    ),
]
PartitionOption = Annotated[
    str | None,
    typer.Option(
        "--partition",
        metavar="NAME",
        help=f"How images are divided among clients: {PARTITIONS.replace('|', ', ')}."
        f" [default: {_DEFAULTS['partition']}]",
    ),
]
Beta = Annotated[
    float | None,
    typer.Option(
        "--dirichlet-beta",
        metavar="BETA",
        help=f"Smaller is more skewed. [default: {_DEFAULTS['dirichlet_beta']}]",
    ),
]
Shots = Annotated[
    int | None,
    typer.Option(
        metavar="K", help=f"Training images per class; 0 takes all. [default: {_DEFAULTS['shots']}]"
    ),
]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Seed of all chance. [default: 0]")]
UnseenDomain = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="With leave-one-domain-out: the domain nobody trains on."),
]
Superclasses = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.toml", help="With pachinko: superclasses. [default: those of CIFAR-100]"
    ),
]
ClientsFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.toml", help="A division that `pfedmma data partition` wrote; edit it freely."
    ),
]

DECIDED = (
    "clients",
    "classes",
    "partition",
    "dirichlet_beta",
    "shots",
    "unseen_domain",
    "superclasses",
)
"""The options that a clients file decides."""


def read_division(**options: Any) -> Division:
    """The division of these options; None takes the default. Raises `UsageError`."""
    from pfedmma_deploy.data.division import Division

    given = {name: value for name, value in options.items() if value is not None}
    if "superclasses" in given:
        given["superclasses"] = str(given["superclasses"])
    return Division(**{"clients": _DEFAULTS["clients"], **given})


def refuse_beside_file(flags: Mapping[str, object]) -> None:
    """Raises `UsageError` where a clients file is given beside an option that it decides."""
    beside = [name for name in DECIDED if flags.get(name) is not None]
    if flags.get("clients_file") is not None and beside:
        raise UsageError(
            f"--clients-file says already who holds which images: leave out"
            f" --{beside[0].replace('_', '-')}, or the file"
        )
