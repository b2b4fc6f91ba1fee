"""The command line: which commands there are, and how errors end."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Annotated, Final

import typer

from pfedmma_deploy import __version__
from pfedmma_deploy.errors import PfedmmaError, UsageError

from . import (
    bench,
    bundle,
    cache,
    compare,
    data,
    dedupe,
    demo,
    doctor,
    embed,
    evaluate,
    export,
    fleet,
    inspect,
    key,
    methods,
    monitor,
    personalize,
    predict,
    quickstart,
    replay,
    report,
    search,
    serve,
    train,
)

app = typer.Typer(
    name="pfedmma",
    no_args_is_help=True,
    add_completion=False,
    # Plain help: examples can be copied, and it reads the same in a pipe.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"pfedmma-deploy {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Personalized federated fine-tuning of CLIP: train, personalize, export, predict.

    \b
    Start here:
      pfedmma quickstart
    \b
    With your own images, one folder per class:
      pfedmma train --preset quickstart --data my_photos
      pfedmma personalize --client 3
      pfedmma export
      pfedmma predict photo.jpg --client 3
    """


app.command()(quickstart.quickstart)
app.command()(train.train)
app.command()(personalize.personalize)
app.command()(evaluate.evaluate)
app.command()(report.report)
app.command()(compare.compare)
app.add_typer(fleet.app, name="fleet")
app.command()(export.export)
app.command()(predict.predict)
app.command()(replay.replay)
app.command()(monitor.monitor)
app.command()(embed.embed)
app.command()(search.search)
app.command()(dedupe.dedupe)
app.command()(serve.serve)
app.command()(key.key)
app.command()(inspect.inspect)
app.command()(doctor.doctor)
app.command()(bench.bench)
app.command()(demo.demo)
app.command()(methods.methods)
app.add_typer(data.app)
app.add_typer(bundle.app, name="bundle")
app.add_typer(cache.app, name="cache")


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code: 0, 1 failed, 2 wrong use, 130 after Ctrl-C.

    `predict` ends with 3 where some of the images could not be read.
    A mistake of the user is one sentence on stderr; `--verbose` adds the traceback.
    """
    try:
        app(list(arguments), prog_name="pfedmma")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except Exception as error:
        if "--verbose" in arguments:
            traceback.print_exc()
        return _explain(error)
    return 0


EXTRA_OF: Final[Mapping[str, str]] = {
    **dict.fromkeys(("torch", "torchvision", "open_clip", "timm", "onnx", "onnxscript"), "train"),
    **dict.fromkeys(("safetensors", "jinja2", "matplotlib"), "train"),
    **dict.fromkeys(("gradio", "gradio_client"), "demo"),
    **dict.fromkeys(("pyarrow", "datasets"), "data"),
    **dict.fromkeys(("flwr", "cryptography", "dp_accounting"), "fleet"),
    "ray": "ray",
    "onnxruntime": "cpu",
}
"""Modules that not every installation has, and the extra that brings them."""


def _explain(error: Exception) -> int:
    if isinstance(error, UsageError):
        _complain(str(error))
        return 2
    if isinstance(error, ModuleNotFoundError) and _top_level(error) in EXTRA_OF:
        module = _top_level(error)
        name = EXTRA_OF[module]
        # Not `[all]`: it would put a second ONNX Runtime beside one that is there.
        more = ", or [gpu] for NVIDIA GPUs" if name == "cpu" else ""
        _complain(
            f"this needs {module}, which is not installed: pip install 'pfedmma-deploy[{name}]'"
            f"{more}"
        )
        return 1
    if isinstance(error, PfedmmaError):
        _complain(str(error))
    elif isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        _complain(f"{place}{error.strerror}")
    else:
        kind = type(error).__name__
        _complain(f"{kind}: {error}. This is a defect of pfedmma; --verbose shows where.")
    return 1


def _top_level(error: ModuleNotFoundError) -> str:
    return (error.name or "").partition(".")[0]


def _complain(message: str) -> None:
    print(f"Error: {message}", file=sys.stderr, flush=True)
