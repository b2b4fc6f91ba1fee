"""Options that several commands share, and what they stand for when they are left out."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final, get_args

import typer

from pfedmma_deploy.config import DEFAULTS, Classes, Scheme
from pfedmma_deploy.errors import BundleError, UsageError

if TYPE_CHECKING:
    from pfedmma_deploy.config import Scalar
    from pfedmma_deploy.store.run import Run

EXPORTS = Path("exports")
"""Where `pfedmma export` writes, below the current folder."""


def flag(text: str, metavar: str | None = None, *names: str, **more: Any) -> Any:
    """An option of one command: its help, what the help calls its value, names of its own."""
    return typer.Option(*names, metavar=metavar, help=text, **more)


def switch(name: str, text: str) -> Any:
    """An option without a value."""
    return typer.Option(name, help=text)


def option(name: str, text: str, metavar: str) -> Any:
    """The flag of an option of `TrainConfig`; the help shows the default from there."""
    default = DEFAULTS[name]
    shown = f" [default: {default}]" if isinstance(default, int | float | str) else ""
    return typer.Option(f"--{name.replace('_', '-')}", help=text + shown, metavar=metavar)


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="Show warnings of libraries, and where an error arose.")
]
RunFolder = Annotated[
    Path | None,
    typer.Option("--run", metavar="DIR", help="Run folder. [default: the newest in runs/]"),
]
Preset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Values to start from: paper (the defaults), or quickstart (for pfedmma-tiny).",
    ),
]
Data = Annotated[
    str | None,
    option("data", "A sample, a known data set, a folder or a manifest.", "NAME|DIR|FILE"),
]
BackboneName = Annotated[
    str | None, option("backbone", "pfedmma-tiny, or any open_clip model name.", "NAME")
]
Pretrained = Annotated[
    str | None, option("pretrained", "open_clip tag or weights file.", "TAG_OR_FILE")
]
Rounds = Annotated[int | None, option("rounds", "Rounds of training.", "N")]
LocalEpochs = Annotated[
    int | None, option("local_epochs", "Epochs that a client trains in a round.", "N")
]
Seed = Annotated[int | None, option("seed", "Seed of all randomness.", "N")]

DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        metavar="DIR",
        help="Folder that holds data sets by name. [default: the variable PFEDMMA_DATA]",
    ),
]

Clients = Annotated[int | None, option("clients", "Number of clients.", "N")]
_PARTITION: Final[Mapping[str, Any]] = {
    "clients": Clients,
    "classes": Annotated[
        str | None,
        option(
            "classes",
            "Train on the first half of the classes, or on all.",
            "|".join(get_args(Classes)),
        ),
    ],
    "partition": Annotated[
        str | None,
        option("partition", "Who holds which images.", "|".join(get_args(Scheme))),
    ],
    "dirichlet_beta": Annotated[
        float | None, option("dirichlet_beta", "Smaller is more skewed.", "BETA")
    ],
    "unseen_domain": Annotated[
        str | None,
        option("unseen_domain", "With leave-one-domain-out: the domain nobody trains on.", "NAME"),
    ],
    "superclasses": Annotated[
        str | None,
        option(
            "superclasses",
            "With pachinko: superclasses. [default: those of CIFAR-100]",
            "FILE.toml",
        ),
    ],
    "clients_file": Annotated[
        str | None,
        option(
            "clients_file",
            "A partition that `pfedmma data partition` wrote; edit it freely.",
            "FILE.toml",
        ),
    ],
    "shots": Annotated[int | None, option("shots", "Training images per class; 0 takes all.", "K")],
}
"""The options of a partition, by name."""
PartitionOptions = Mapping[str, Any]
"""Those of them that are given."""
NO_PARTITION: Final[PartitionOptions] = MappingProxyType({})


def with_partition(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command every option of a partition.

    It has a parameter `partition: PartitionOptions = NO_PARTITION`, in whose place they stand in
    the help.
    """
    parameters: list[inspect.Parameter] = []
    signature = inspect.signature(command, eval_str=True)
    for parameter in signature.parameters.values():
        if parameter.name != "partition":
            parameters.append(parameter)
            continue
        for name, annotation in _PARTITION.items():
            parameters.append(parameter.replace(name=name, annotation=annotation, default=None))

    @functools.wraps(command)
    def run(**values: Any) -> None:
        options = {name: values.pop(name) for name in _PARTITION}
        given = {name: value for name, value in options.items() if value is not None}
        _refuse_beside_file(given)
        command(**values, partition=given)

    # What typer reads instead of the parameters of `run`.
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run


def _refuse_beside_file(given: Mapping[str, Any]) -> None:
    """Raises `UsageError` where a clients file is given beside an option that it decides."""
    beside = [name for name in given if name != "clients_file"]
    if "clients_file" in given and beside:
        raise UsageError(
            f"--clients-file says already who holds which images: leave out"
            f" --{beside[0].replace('_', '-')}, or the file"
        )


def open_run(folder: Path | None) -> Run:
    """The run in `folder`, or else the newest. Raises `StoreError`, which names what makes one."""
    from pfedmma_deploy.store.run import Run, newest_run

    return newest_run() if folder is None else Run.open(folder)


def find_bundle(folder: Path | None) -> Path:
    """`folder`, or else the newest export. Raises `BundleError`, which names what makes one."""
    if folder is not None:
        return folder
    manifests = EXPORTS.glob("*/manifest.json")
    newest = max(manifests, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise BundleError(
            f"There is no exported model under {EXPORTS.resolve()}: make one with `pfedmma export`"
            " (or all at once with `pfedmma quickstart`), or name one with --model."
        )
    return newest.parent


def split_names(text: str | None) -> list[str] | None:
    """Comma-separated names without the spaces around them; None stays None."""
    if text is None:
        return None
    return [name.strip() for name in text.split(",") if name.strip()]


def split_numbers(flag: str, text: str, example: str) -> list[int]:
    """Comma-separated whole numbers. Raises `UsageError`, which names the flag and an example."""
    try:
        return [int(name) for name in split_names(text) or ()]
    except ValueError:
        raise UsageError(f"{flag} takes whole numbers such as {example}, not {text!r}") from None


def free_folder(data: str) -> Path:
    """`runs/<data>`, with a number behind it where that is taken."""
    name = Path(data).resolve().name
    if not name:
        raise UsageError(f"no run folder can be named after {data!r}: name one with --out")
    candidates = (Path("runs", name if n == 1 else f"{name}-{n}") for n in itertools.count(1))
    return next(path for path in candidates if not path.exists())


def parse_settings(settings: Sequence[str] | None) -> dict[str, Scalar] | None:
    """`["rank=8", "share=AB"]` as `{"rank": 8, "share": "AB"}`; None stays None.

    Raises:
        UsageError: one is not NAME=VALUE.
    """
    if settings is None:
        return None
    found: dict[str, Scalar] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not name or not equals:
            raise UsageError(f"--set takes NAME=VALUE, such as rank=8, not {setting!r}.")
        found[name] = _scalar(text)
    return found


def _scalar(text: str) -> Scalar:
    """A value as TOML would read it; what is none of these is text."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text
