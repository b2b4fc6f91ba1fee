"""`pfedmma export`: from a run to an ONNX bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.export.export_config import Flavour, Precision, Storage

from .options import RunFolder, flag, open_run, split_names, switch, with_output
from .output import Output

FileFormat = Literal["onnx", "open_clip"]


@with_output
def export(
    output: Output,
    run: RunFolder = None,
    client: Annotated[
        str | None, flag("Only these clients. [default: all of them]", "ID[,ID]")
    ] = None,
    all_clients: Annotated[bool, switch("--all", "All clients in one file.")] = False,
    out: Annotated[Path | None, flag("Bundle folder. [default: exports/RUN]", "DIR")] = None,
    classifier: Annotated[
        bool, switch("--classifier", "Add classifier.onnx: pixels in, class scores out.")
    ] = False,
    flavour: Annotated[
        Flavour | None,
        flag(
            "ort: ONNX Runtime's fused operators; portable: standard operators. "
            "[default: portable; ort with fp16]"
        ),
    ] = None,
    precision: Annotated[Precision, flag("Arithmetic: fp16 for GPUs, int8 for CPUs.")] = "fp32",
    weights: Annotated[
        Storage, flag("Storage of the weights; fp16 is half the file, run as fp32.")
    ] = "fp32",
    max_accuracy_drop: Annotated[float, flag("What reduced precision may lose.", "POINTS")] = 0.5,
    file_format: Annotated[
        FileFormat,
        flag("open_clip: a stock state dict, for methods that merge.", None, "--format"),
    ] = "onnx",
    strength: Annotated[
        float | None,
        flag("With open_clip: how much counts, 0 to 1.5. [default: the client's own]", "A"),
    ] = None,
    moved: Annotated[
        str | None, typer.Option("--add-client", "--remove-client", "--to", "--as", hidden=True)
    ] = None,
) -> None:
    """Write an ONNX bundle from a run.

    It predicts without torch; client 0 in it is zero-shot CLIP. The bundle is compared with torch
    on real images before it gets its name; fp16 and int8 also by their accuracy.

    \b
    Examples:
      pfedmma export
      pfedmma export --precision int8
      pfedmma export --client 3 --out exports/site3
      pfedmma export --run runs/sites --all --classifier
      pfedmma export --run runs/lora --client 3 --format open_clip
    """
    if all_clients and client is not None:
        raise UsageError("--all and --client exclude each other: leave one of them out")
    if client is not None and not split_names(client):
        raise UsageError(
            f"--client {client!r} names no client: give ids such as 3 or 3,4, or leave it out"
        )
    if moved is not None:
        raise UsageError(
            "clients join and leave a finished bundle with `pfedmma bundle add CLIENT_DIR --to "
            "BUNDLE [--as ID]` and `pfedmma bundle remove ID --from BUNDLE`"
        )
    opened = open_run(run)
    from pfedmma_deploy.export import export as export_clients

    values: dict[str, Any] = export_clients(
        opened,
        out,
        client=split_names(client),
        classifier=classifier,
        flavour=flavour,
        precision=precision,
        weights=weights,
        max_accuracy_drop=max_accuracy_drop,
        format=file_format,
        strength=strength,
        progress=output.progress,
    ).to_dict()
    if file_format == "open_clip":
        _print_open_clip(output, values)
    else:
        print_report(output, values)
        last = values["clients"][-1]
        output.note(f"Next: pfedmma predict IMAGE --model {values['bundle']} --client {last}")
    output.result(values)


def _print_open_clip(output: Output, values: dict[str, Any]) -> None:
    """The files of `--format open_clip`."""
    output.table(
        ["File", "MB"],
        [[name, f"{size / 1e6:.2f}"] for name, size in values["files"].items()],
        f"{values['bundle']}: plain open_clip weights",
    )
    output.say(
        f"Loaded back by open_clip and compared on {values['parity']['images']} images: "
        "largest difference 0."
    )


def print_report(output: Output, values: dict[str, Any]) -> None:
    """The files of a bundle and how close it is to torch."""
    files = [[name, f"{size / 1e6:.2f}"] for name, size in values["files"].items()]
    output.table(
        ["File", "MB"],
        files,
        f"{values['bundle']}: {len(values['clients']) - 1} clients and zero-shot",
    )
    parity = values["parity"]
    output.say(
        f"Checked against torch on {parity['images']} images: largest difference "
        f"{parity['max_abs_error']:.1e}, same answer on {parity['top1_agreement']:.1f} %."
    )
    quality = values["quality"]
    if quality is not None:
        before, after = quality["before"], quality["after"]
        rows = [[name.replace("_", " "), before[name], after[name]] for name in before]
        output.table(
            ["Accuracy, %", "Exact", "This model"],
            rows,
            f"Judged on {quality['images']} images: same answer on "
            f"{quality['top1_agreement']:.1f} %, mean cosine {quality['mean_cosine']:.5f}",
        )
