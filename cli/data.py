"""`pfedmma data`: the commands about data sets, gathered under one name."""

from __future__ import annotations

import typer

from . import data_list

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
    """


app.command("list")(data_list.list_datasets)
