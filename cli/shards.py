"""Answers in Parquet, in one file or in shards that many machines work on.

A shard is a run of whole batches of the list of images, so that every batch holds the same images
however many shards there are: the answers are the same to the bit, and the shards' files, one
behind the other, hold the rows that one machine would have written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from pfedmma_deploy.errors import UsageError

if TYPE_CHECKING:
    from pfedmma_deploy.runtime import Prediction
    from pfedmma_deploy.types import Skipped

ROWS: Final = 4096
"""Of a row group: what is held before it is written."""
_SETTINGS: Final = b"pfedmma"
"""Key of the file's metadata that says what it was made with."""


@dataclass(frozen=True)
class Shard:
    """One of several parts of a list of images."""

    number: int
    """From 1."""
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`3/16`. Raises `UsageError`."""
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UsageError(f"--shard is a number of how many, such as 3/16, not {text!r}.")
        return cls(int(found[1]), int(found[2]))

    def of(self, images: Iterable[Path], total: int, batch_size: int) -> Iterable[Path]:
        """Its images out of `total`: whole batches, their number as even as can be."""
        batches = -(-total // batch_size)
        first, last = (batches * n // self.count for n in (self.number - 1, self.number))
        return islice(images, first * batch_size, last * batch_size)

    def size(self, total: int, batch_size: int) -> int:
        """How many images it has."""
        batches = -(-total // batch_size)
        first, last = (batches * n // self.count for n in (self.number - 1, self.number))
        return max(0, min(last * batch_size, total) - first * batch_size)

    def file(self, out: Path) -> Path:
        """Where its answers go: `answers-00003-of-00016.parquet` for `answers.parquet`."""
        return out.with_name(f"{out.stem}-{self.number:05}-of-{self.count:05}{out.suffix}")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def every(text: str) -> int | None:
    """How many shards `all/16` stands for; None where it is one shard. Raises `UsageError`."""
    first, _, count = text.partition("/")
    return Shard.parse(f"1/{count}").count if first == "all" else None


def arguments_of(context: click.Context, without: Sequence[str]) -> list[str]:
    """What was typed after a command's name, but for the options named in `without`."""
    found: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        typed = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not typed or name in without:
            continue
        value = context.params[name]
        if isinstance(parameter, click.Argument):
            found += map(str, value)
        elif isinstance(value, bool):
            found.append(parameter.opts[0])
        else:
            found += [parameter.opts[0], str(value)]
    return found


def run_all(arguments: Sequence[str], count: int, *, ray: bool) -> list[int]:
    """Run `pfedmma predict` for every shard, here one after the other or on a Ray cluster.

    Args:
        arguments: of `predict`, without `--shard`.
        count: shards.
        ray: whether to use Ray Data; of the cluster that `RAY_ADDRESS` names or that runs on this
            machine, else of one started now. All its machines need the same files at the same
            places.

    Returns:
        The exit code of each shard.
    """
    items = [{"shard": f"{number}/{count}"} for number in range(1, count + 1)]
    if not ray:
        return [run_shard(item, arguments)["code"] for item in items]
    # Ray Data runs it wherever there is a free core, again where a machine was lost, and shows how
    # far it is. The rows are names of shards: the images never travel.
    from ray import data

    # One thread a task, since Ray counts one core for it, unless the user says otherwise.
    typed = [*arguments] if "--threads" in arguments else [*arguments, "--threads", "1"]
    threads = int(typed[typed.index("--threads") + 1])
    shards = data.from_items(items, override_num_blocks=count)
    done = shards.map(
        run_shard,
        fn_kwargs={"arguments": typed, "folder": str(Path.cwd())},
        num_cpus=threads,
    )
    return [int(row["code"]) for row in done.take_all()]


def run_shard(
    item: dict[str, str], arguments: Sequence[str], folder: str | None = None
) -> dict[str, Any]:
    """Predict one shard, in `folder` where it is given; its exit code is `code`."""
    from .main import run

    if folder is not None:
        os.chdir(folder)
    return {**item, "code": run(["predict", *arguments, "--shard", item["shard"]])}


def listing(images: Iterable[Path]) -> tuple[int, str]:
    """How many images there are, and the SHA-256 of all their names in order."""
    digest, total = hashlib.sha256(), 0
    for image in images:
        digest.update(str(image).encode("utf-8", "surrogateescape") + b"\0")
        total += 1
    return total, digest.hexdigest()


def is_done(file: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a shard has been written with the same settings.

    Raises:
        UsageError: it was written with others, or is something else.
    """
    if not file.exists():
        return False
    from pyarrow import ArrowException, parquet

    try:
        metadata = parquet.read_schema(file).metadata or {}
        found = json.loads(metadata.get(_SETTINGS, b"{}"))
    except (ArrowException, OSError, ValueError):
        found = {}
    if not found:
        raise UsageError(f"{file} is no shard of answers: remove it, or name another --out.")
    for name, value in settings.items():
        if found.get(name) != value:
            raise UsageError(
                f"{file} was made with other settings ({name} was {found.get(name)!r}, is now "
                f"{value!r}): remove it, or name another --out."
            )
    return True


def write_parquet(
    outcomes: Iterable[tuple[Prediction, ...] | Skipped], file: Path, settings: Mapping[str, Any]
) -> None:
    """A table with a row an image, in their order.

    Columns: `path`, `client`, `strength`, `top` (a list of `class` and `probability`), `zero_shot`
    likewise with a comparison, and `skipped`, the reason where an image could not be read. Where
    answers are judged: `answer`, `known`, `threshold`, `negative`, `likely`, and all of them in
    `zero_shot_verdict`. A path is as in JSON lines.
    """
    import pyarrow
    from pyarrow import parquet

    scores = pyarrow.list_(
        pyarrow.struct([("class", pyarrow.string()), ("probability", pyarrow.float64())])
    )
    text, number = pyarrow.string(), pyarrow.float64()
    verdict = [("answer", text), ("known", number), ("threshold", number), ("negative", text)]
    verdict.append(("likely", pyarrow.list_(text)))
    judged = settings["judged"]
    columns = [("path", text), ("client", text), ("strength", number), ("top", scores)]
    columns += verdict if judged else []
    if settings["compare"]:
        columns.append(("zero_shot", scores))
        columns += [("zero_shot_verdict", pyarrow.struct(verdict))] if judged else []
    columns.append(("skipped", text))
    schema = pyarrow.schema(columns).with_metadata({_SETTINGS: json.dumps(settings)})
    rows = (_row(outcome, judged=judged) for outcome in outcomes)
    with parquet.ParquetWriter(file, schema) as writer:
        while group := list(islice(rows, ROWS)):
            writer.write_table(pyarrow.Table.from_pylist(group, schema))


def _row(outcome: tuple[Prediction, ...] | Skipped, *, judged: bool) -> dict[str, Any]:
    from .predict import as_dict, printable

    if isinstance(outcome, tuple):
        return as_dict(outcome, judged=judged)
    return {"path": printable(outcome.path), "skipped": outcome.reason}
