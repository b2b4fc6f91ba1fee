"""`pfedmma data`: the commands about data sets, gathered under one name."""

from __future__ import annotations

import typer

from . import data_check, data_fetch, data_info, data_list, data_partition

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


app.command("list")(data_list.list_datasets)
app.command()(data_info.info)
app.command()(data_fetch.fetch)
app.command()(data_check.check)
app.command()(data_partition.partition)
