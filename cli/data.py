"""`pfedmma data`: which data sets are known, what a folder holds, how to get what is not there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfedmma_deploy.errors import UsageError

from . import data_check, data_partition
from .options import DataRoot, switch, with_output
from .output import Output

if TYPE_CHECKING:
    from pfedmma_deploy.data.catalog import KnownDataset

_SHOWN = 12
"""Class names that are shown."""

app = typer.Typer(
    name="data",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback()
def _data() -> None:
    """Data sets: which are known, what a folder holds, what is wrong with it.

    \b
    Examples:
      pfedmma data list
      pfedmma data info my_photos
      pfedmma data fetch cifar10 --data-root data
      pfedmma data check my_photos
      pfedmma data partition my_photos --clients 5 --out clients.toml
    """


@app.command("list")
@with_output
def list_datasets(
    output: Output,
    data_root: DataRoot = None,
) -> None:
    """List the data sets that are known by name, present or not.

    \b
    Examples:
      pfedmma data list
      pfedmma data list --data-root /data
      pfedmma data list --json
    """
    from pfedmma_deploy.data import catalog
    from pfedmma_deploy.data.registry import dataset_plugins
    from pfedmma_deploy.data.samples import SAMPLE_NAMES

    root = catalog.data_root(data_root)
    entries, rows = [], []
    for known in catalog.known_datasets().values():
        entry = catalog.describe_known(known, data_root)
        counts = f"{known.classes:,}", f"{known.images:,}"
        entries.append(entry)
        rows.append([known.name, *counts, known.licence, entry["folder"]])
    output.table(["Name", "Classes", "Images", "Licence", "Folder"], rows)
    plugins = dataset_plugins()
    if plugins.found:
        output.say("")
        output.table(["Name", "Package"], list(plugins.packages.items()), "Of installed packages")
    problems = [sentence for _, sentence in plugins.problems]
    for sentence in problems:
        output.note(f"warning: {sentence}")
    output.note(
        f"In the package: {', '.join(SAMPLE_NAMES)}. Any folder of images works as well.\n"
        + (f"Looked below {root}." if root else f"Set {catalog.ROOT_VARIABLE} or give --data-root.")
        + " Next: pfedmma data info NAME"
    )
    added = [{"name": name, "package": package} for name, package in plugins.packages.items()]
    values = {"data_root": str(root) if root else None, "datasets": entries}
    output.result({**values, "plugins": added, "problems": problems})


@app.command()
@with_output
def info(
    output: Output,
    data: Annotated[
        str, typer.Argument(metavar="NAME|DIR", help="A known name, a sample, a folder or a file.")
    ],
    data_root: DataRoot = None,
    no_cache: Annotated[
        bool, switch("--no-cache", "List the folder anew, whatever is remembered of it.")
    ] = False,
) -> None:
    """Show the classes, parts, domains and clients of a data set.

    For a known data set that is not there: what is expected where, and where people get it. Images
    are counted, not opened; `pfedmma data check` opens them.

    \b
    Examples:
      pfedmma data info oxford_pets
      pfedmma data info my_photos
      pfedmma data info /data/domainnet --json
    """
    from pfedmma_deploy.data import catalog
    from pfedmma_deploy.data.datasets import load_dataset, summarize

    known = catalog.known_datasets().get(data)
    if known and not Path(data).exists() and catalog.find_known(known, data_root) is None:
        _absent(output, known, data_root)
        return
    dataset = load_dataset(data, root=data_root, verify=False, cache=not no_cache)
    found = summarize(dataset)
    _present(output, found)
    output.result({"present": True, **found})


def _absent(output: Output, known: KnownDataset, root: Path | None) -> None:
    from pfedmma_deploy.data import catalog

    base = catalog.data_root(root)
    where = f"in {base}" if base else "(no data root)"
    output.say(f"{known.name}: {known.title}, {known.classes:,} classes, {known.images:,} images")
    output.say(f"Licence: {known.licence}")
    output.say(f"Not there: no folder {' or '.join(known.folders)} {where}")
    output.say(f"Expected in that folder: {', '.join(known.expects)}")
    output.say(f"Homepage: {known.homepage}")
    if known.split:
        output.say(f"{known.split_file or known.expects[-1]}: {known.split}")
    if known.torchvision:
        output.say(f"Download the images: pfedmma data fetch {known.name}")
    output.note(
        f"Give --data-root or set {catalog.ROOT_VARIABLE} to the folder above it, or name its own"
        " folder."
    )
    output.result({"present": False, **catalog.describe_known(known, root)})


def _present(output: Output, found: dict[str, Any]) -> None:
    output.say(f"{found['name']}: {found['images']:,} images of {len(found['classes'])} classes")
    output.say(f"Layout: {found['layout']}")
    names = [entry["name"] for entry in found["classes"]]
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    output.say(f"Classes in order: {', '.join(names[:_SHOWN])}{more}")
    for title, column in (("Domain", "domains"), ("Client", "clients")):
        if found[column]:
            rows = []
            for name, counts in found[column].items():
                rows.append([name, *(counts.get(part, 0) for part in ("train", "val", "test"))])
            output.table([title, "Train", "Val", "Test"], rows)
    parts = ", ".join(f"{count:,} {part}" for part, count in found["parts"].items())
    output.say(f"Parts: {parts}")
    missing = [part for part in ("val", "test") if part not in found["parts"]]
    if missing:
        output.note(f"No {' and no '.join(missing)} part: training sets images aside by its seed.")
    if found["skipped"]:
        first = found["skipped"][0]
        output.note(f"{len(found['skipped']):,} skipped, as {first['path']}: {first['reason']}")
    for warning in found["problems"]:
        output.note(f"warning: {warning}")


@app.command()
@with_output
def fetch(
    output: Output,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name from `pfedmma data list`.")],
    data_root: DataRoot = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Download without asking.")] = False,
) -> None:
    """Download a data set into the data root, after saying what, from where and how large.

    \b
    Examples:
      pfedmma data fetch cifar10 --data-root data
      pfedmma data fetch dtd --yes
    """
    from pfedmma_deploy.data import catalog

    known = catalog.find_fetchable(name)
    root = catalog.data_root(data_root)
    if root is None:
        raise UsageError(
            f"nowhere to put {name}: give --data-root, or set the variable PFEDMMA_DATA"
        )
    import torchvision.datasets

    size = f"{(known.download_bytes or 0) / 1e6:,.0f} MB"
    output.note(
        f"{known.title}: about {size} into {root.resolve()}, from where torchvision"
        f" {torchvision.__version__} gets it.\n"
        f"Licence: {known.licence}; its page decides: {known.homepage}"
    )
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("asking needs a terminal; --yes downloads without asking")
        # On stderr, because stdout is for results.
        if not typer.confirm("Download?", err=True):
            raise UsageError("nothing was downloaded; --yes downloads without asking")
    folder = catalog.fetch(known, torchvision.datasets, root)
    lists = [name for name in known.expects if name.endswith((".json", ".txt"))]
    missing = [name for name in lists if not (folder / name).is_file()]
    output.say(f"{known.name} is in {folder}.")
    if missing:
        output.say(f"For the parts of the papers, put {missing[0]} there, from {known.split}")
    output.note(f"Next: pfedmma data info {known.name} --data-root {root}")
    output.result({"name": known.name, "folder": str(folder), "missing": missing})


app.command()(data_check.check)
app.command()(data_partition.partition)
