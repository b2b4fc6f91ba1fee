"""Options that several commands share, and what they stand for when they are left out."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from pfedmma_deploy.config import DEFAULTS, read_table
from pfedmma_deploy.errors import BundleError, UsageError
from pfedmma_deploy.export import EXPORTS

from .output import open_output

if TYPE_CHECKING:
    from pfedmma_deploy.config import Scalar
    from pfedmma_deploy.store.run import Run

_TEXTS: Final[Mapping[str, dict[str, Any]]] = read_table("options.toml")
_KINDS: Final[dict[str, Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "list": list[str],
}


def flag(text: str, metavar: str | None = None, *names: str, **more: Any) -> Any:
    """An option of one command: its help, what the help calls its value, names of its own."""
    return typer.Option(*names, metavar=metavar, help=text, **more)


def switch(name: str, text: str) -> Any:
    """An option without a value."""
    return typer.Option(name, help=text)


def option(name: str) -> Any:
    """The flag of an option of `TrainConfig`; the help shows the default from there."""
    entry = _TEXTS[name]
    default = DEFAULTS.get(name)
    kind, text = entry["type"], entry.get("help", "")
    dashed = name.replace("_", "-")
    spelled = entry.get("flag", f"--{dashed}/--no-{dashed}" if kind == "bool" else f"--{dashed}")
    if isinstance(default, int | float | str) and kind != "bool":
        text += f" [default: {default}]"
    metavar, hidden = entry.get("metavar"), entry.get("hidden", False)
    return typer.Option(spelled, help=text, metavar=metavar, hidden=hidden)


_OUTPUT: Final[Mapping[str, Any]] = {
    "as_json": typer.Option("--json", help="Print one JSON object and nothing else."),
    "quiet": typer.Option("--quiet", "-q", help="Print results only."),
    "verbose": typer.Option(
        "--verbose", help="Show warnings of libraries, and where an error arose."
    ),
}
RunFolder = Annotated[
    Path | None, flag("Run folder. [default: the newest in runs/]", "DIR", "--run")
]
Preset = Annotated[
    str | None,
    flag("Values to start from: paper (the defaults), or quickstart (for pfedmma-tiny).", "NAME"),
]
Pretrained = Annotated[str | None, option("pretrained")]
Seed = Annotated[int | None, option("seed")]
Clients = Annotated[int | None, option("clients")]

DataRoot = Annotated[
    Path | None,
    flag("Folder that holds data sets by name. [default: the variable PFEDMMA_DATA]", "DIR"),
]

PartitionOptions = Mapping[str, Any]
"""The options of a partition that are given, by name."""
NO_PARTITION: Final[PartitionOptions] = MappingProxyType({})


def with_output(command: Callable[..., None]) -> Callable[..., None]:
    """Opens a command's `output`, and gives it the options that all commands have."""
    signature = inspect.signature(command, eval_str=True)
    parameters = [one for name, one in signature.parameters.items() if name != "output"]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    for name, entry in _OUTPUT.items():
        annotation = Annotated[bool, entry]
        parameters.append(inspect.Parameter(name, kind, default=False, annotation=annotation))

    @functools.wraps(command)
    def run(*, as_json: bool, quiet: bool, verbose: bool, **values: Any) -> None:
        with open_output(as_json=as_json, quiet=quiet, verbose=verbose) as output:
            command(output=output, **values)

    # What typer reads instead of the parameters of `run`.
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run


_PARTITION = [name for name, entry in _TEXTS.items() if entry.get("partition")]


def with_partition(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command every option of a partition, as `partition: PartitionOptions`."""
    return _with_options(command, "partition", _PARTITION)


def with_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command every option of a run, those that are given as `options: Mapping`."""
    return _with_options(command, "options", list(_TEXTS))


def with_common_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options that runs to be compared share, as `options: Mapping`."""
    names = ["data", "backbone", "pretrained", *_PARTITION, "rounds", "local_epochs"]
    return _with_options(command, "options", names)


def _with_options(
    command: Callable[..., None], place: str, names: Sequence[str]
) -> Callable[..., None]:
    """Replaces the parameter `place` by the named options, where typer reads the parameters.

    Raises `UsageError` when it is called with a clients file and an option that the file decides.
    """
    parameters: list[inspect.Parameter] = []
    signature = inspect.signature(command, eval_str=True)
    for parameter in signature.parameters.values():
        if parameter.name != place:
            parameters.append(parameter)
            continue
        for name in names:
            kind: Any = _KINDS[_TEXTS[name]["type"]]
            annotation = Annotated[kind | None, option(name)]
            parameters.append(parameter.replace(name=name, annotation=annotation, default=None))

    @functools.wraps(command)
    def run(**values: Any) -> None:
        options = {name: values.pop(name) for name in names}
        given = {name: value for name, value in options.items() if value is not None}
        for name in given if "clients_file" in given else ():
            if _TEXTS[name].get("partition") and name != "clients_file":
                raise UsageError(
                    f"--clients-file says already who holds which images: leave out"
                    f" --{name.replace('_', '-')}, or the file"
                )
        command(**values, **{place: given})

    # What typer reads instead of the parameters of `run`.
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run


def open_run(folder: Path | None) -> Run:
    """The run in `folder`, or else the newest. Raises `StoreError`, which names what makes one."""
    from pfedmma_deploy.store.run import find_run

    return find_run(folder)


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
    """Comma-separated whole numbers and ranges of them: `"0-2,7"` is 0, 1, 2 and 7.

    Raises `UsageError`, which names the flag and an example.
    """
    found: list[int] = []
    try:
        for part in split_names(text) or ():
            first, dash, last = part.partition("-")
            found += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError:
        raise UsageError(f"{flag} takes whole numbers such as {example}, not {text!r}") from None
    return found


def parse_settings(settings: Sequence[str]) -> dict[str, Scalar]:
    """`["rank=8", "share=AB"]` as `{"rank": 8, "share": "AB"}`.

    Raises:
        UsageError: one is not NAME=VALUE.
    """
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
