"""`pfedmma predict`: images in, labels out, without torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from pfedmma_deploy.errors import UsageError

from .options import AsJson, Quiet, Verbose, find_bundle, split_names
from .output import Output, open_output
from .predictions import Csv, Format, JsonLines, OneObject, Table, Writer, destination, printable

if TYPE_CHECKING:
    from pfedmma_deploy.runtime import Classifier, Prediction
    from pfedmma_deploy.types import Skipped

SOME_SKIPPED = 3
"""Exit code where some images, but not all, could be read."""


def predict(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGES...", help='Files, folders, or patterns such as "a/**/*.jpg".'
        ),
    ],
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Exported bundle. [default: the newest in exports/]"),
    ] = None,
    client: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Whose model. [default: the only one, else zero-shot]"),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help='Other class names, such as "cat,dog". [default: all]'),
    ] = None,
    top: Annotated[int, typer.Option(metavar="N", min=1, help="Answers per image.")] = 3,
    compare: Annotated[
        bool, typer.Option("--compare", help="Show what zero-shot CLIP answers beside it.")
    ] = False,
    form: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="How to print; csv and jsonl come image by image, for any number of them. "
            "[default: by the ending of --out, else table]",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write there, once all is done. [default: stdout]"),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(metavar="N", min=1, help="Images per call of the model.")
    ] = 32,
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="CPU threads. [default: all cores it may use]"),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda|tensorrt", help="Where to compute.")
    ] = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Classify images, without torch.

    Images that cannot be read are named on stderr and left out. Exit codes: 0 all were read, 3
    some were not, 1 none was.

    \b
    Examples:
      pfedmma predict photo.jpg --client 3
      pfedmma predict photos/ --model exports/sites --client 3 --compare
      pfedmma predict photo.jpg --client 3 --classes "cat,dog,a steam locomotive" --json
      pfedmma predict "photos/**/*.jpg" --client 3 --out answers.csv
    """
    if as_json and (form or out):
        raise UsageError("--json prints one object on stdout: leave out --format and --out")
    with open_output(as_json=as_json, quiet=quiet) as output:
        bundle = find_bundle(model)
        from pfedmma_deploy.runtime.sources import find_images

        total = sum(1 for _ in find_images(images))
        from pfedmma_deploy.runtime import Classifier

        classifier = Classifier.load(bundle, device, threads)
        if device == "auto" and classifier.fallback_reason and verbose:
            output.note(f"note: computing on the CPU: {classifier.fallback_reason}")
        chosen = client or _default_client(classifier, output)
        clients: list[str | int] = [chosen, 0] if compare else [chosen]
        names = split_names(classes)
        form = form or _by_ending(out)
        answers = min(top, len(names or classifier.class_names))
        outcomes = _outcomes(classifier, find_images(images), clients, names, top, batch_size)
        if out or form == "table" or not output.stdout.isatty():
            # Elsewhere a bar would run through the rows.
            outcomes = output.progress.track(outcomes, "images", total)
        with destination(out, output.stdout) as stream:
            writer = _writer(output, stream, form, answers, compare)
            found, skipped = _write(outcomes, writer, output)
        if skipped:
            output.note(f"{skipped} of {found + skipped} images could not be read")
        if out and not as_json:
            output.note(f"Wrote {out}")
    if skipped:
        raise typer.Exit(SOME_SKIPPED if found else 1)


def _default_client(classifier: Classifier, output: Output) -> str | int:
    """The bundle's only personalized client, or else zero-shot, which is said."""
    ids = [info.id for info in classifier.clients[1:]]
    if len(ids) == 1:
        return ids[0]
    output.note(f"note: zero-shot, since no --client is named (clients: {', '.join(ids[:12])})")
    return 0


def _by_ending(out: Path | None) -> Format:
    endings: dict[str, Format] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
    return endings.get(out.suffix.lower(), "table") if out else "table"


def _writer(output: Output, stream: TextIO, form: Format, answers: int, compare: bool) -> Writer:
    if output.as_json:
        return OneObject(output)
    if form == "csv":
        return Csv(stream, answers, compare=compare)
    if form == "jsonl":
        return JsonLines(stream)
    return Table(Output(stream, as_json=False, quiet=output.quiet))


def _outcomes(
    classifier: Classifier,
    images: Iterable[Path],
    clients: Sequence[str | int],
    names: list[str] | None,
    top: int,
    batch_size: int,
) -> Iterator[tuple[Prediction, ...] | Skipped]:
    """Of each image what the clients answer, or why it was skipped, in order."""
    skipped: deque[Skipped] = deque()
    for predictions in classifier.iter_compare(
        images, clients, names, top, batch_size=batch_size, on_skip=skipped.append
    ):
        while skipped:
            yield skipped.popleft()
        yield predictions
    yield from skipped


def _write(
    outcomes: Iterable[tuple[Prediction, ...] | Skipped], writer: Writer, output: Output
) -> tuple[int, int]:
    """How many images were read, and how many were not."""
    found = skipped = 0
    for outcome in outcomes:
        if isinstance(outcome, tuple):
            writer.found(outcome)
            found += 1
        else:
            output.note(f"skipped {printable(outcome.path)}: {outcome.reason}")
            writer.skipped(outcome)
            skipped += 1
    writer.finish()
    return found, skipped
