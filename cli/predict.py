"""`pfedmma predict`: images in, labels out, without torch; a table, CSV, JSON or Parquet."""

from __future__ import annotations

import csv
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import click
import typer

from pfedmma_deploy.errors import UsageError

from .options import find_bundle, flag, split_names, switch, with_output
from .output import Output
from .shards import Shard, arguments_of, every, is_done, listing, run_all, write_parquet

if TYPE_CHECKING:
    from pfedmma_deploy.runtime import Classifier, Prediction
    from pfedmma_deploy.runtime.certainty import Terms
    from pfedmma_deploy.runtime.manifest import ClientInfo
    from pfedmma_deploy.types import Skipped

    Outcome = tuple[Prediction, ...] | Skipped

SOME_SKIPPED = 3
"""Exit code where some images, but not all, could be read."""
_WORST = (0, SOME_SKIPPED, 1, 2, 130)
"""Exit codes of parts; the last of them that occurs is that of the whole."""
Format = Literal["table", "csv", "jsonl", "parquet"]


@with_output
def predict(
    output: Output,
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGES...", help='Files, folders, or patterns such as "a/**/*.jpg".'
        ),
    ],
    model: Annotated[
        Path | None, flag("Exported bundle. [default: the newest in exports/]", "DIR")
    ] = None,
    client: Annotated[
        str | None, flag("Whose model. [default: the only one, else zero-shot]", "ID")
    ] = None,
    strength: Annotated[
        float | None,
        flag(
            "How much of what the client learned counts: 0 is zero-shot, 1 as trained, 1.5 the "
            "most. [default: the client's own, mostly 1]",
            "A",
        ),
    ] = None,
    classes: Annotated[
        str | None, flag('Other class names, such as "cat,dog". [default: all]', "NAMES")
    ] = None,
    accept: Annotated[
        float | None,
        flag(
            "Share of the client's own images that must not become unknown; 1: nothing does. "
            "[default: 0.95 where the client is calibrated; 1 with --classes]",
            "SHARE",
        ),
    ] = None,
    negatives: Annotated[
        str | None,
        flag('Names that compete with the classes, such as "empty,blurred": unknown.', "NAMES"),
    ] = None,
    coverage: Annotated[
        float | None,
        flag("Also the classes that hold the right one for this share of images.", "SHARE"),
    ] = None,
    log: Annotated[
        Path | None, flag("Append a record of every answer: see replay and monitor.", "FILE")
    ] = None,
    top: Annotated[int, flag("Answers per image.", "N", min=1)] = 3,
    compare: Annotated[
        bool, switch("--compare", "Show what zero-shot CLIP answers beside it.")
    ] = False,
    file_format: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="How to print; csv and jsonl come image by image, for any number of them; "
            "parquet takes --out. [default: by the ending of --out, else table]",
        ),
    ] = None,
    out: Annotated[
        Path | None, flag("Write there, once all is done. [default: stdout]", "FILE")
    ] = None,
    shard: Annotated[
        str | None,
        flag("One of so many parts of the images, for many machines: 3/16; or all/16.", "N/COUNT"),
    ] = None,
    ray: Annotated[
        bool, switch("--ray", "Run the parts of --shard all/COUNT on a Ray cluster.")
    ] = False,
    batch_size: Annotated[int, flag("Images per call of the model.", "N", min=1)] = 32,
    threads: Annotated[
        int | None, flag("CPU threads. [default: all cores it may use]", "N", min=1)
    ] = None,
    device: Annotated[str, flag("Where to compute.", "auto|cpu|cuda|tensorrt")] = "auto",
) -> None:
    """Classify images, without torch.

    Images that cannot be read are named on stderr and left out. Exit codes: 0 all were read, 3
    some were not, 1 none was.

    \b
    Examples:
      pfedmma predict photo.jpg --client 3
      pfedmma predict photos/ --model exports/sites --client 3 --compare
      pfedmma predict photos/ --client 3 --strength 0.5
      pfedmma predict photo.jpg --client 3 --classes "cat,dog,a steam locomotive" --json
      pfedmma predict "photos/**/*.jpg" --client 3 --out answers.csv
      pfedmma predict photos/ --client 3 --out answers.parquet --shard 3/16
      pfedmma predict photos/ --client 3 --out answers.parquet --shard all/16 --ray
      pfedmma predict photos/ --client 3 --log answers.jsonl
      pfedmma predict photos/ --client 3 --accept 0.99 --negatives "empty,blurred"
    """
    if output.as_json and (file_format or out):
        raise UsageError("--json prints one object on stdout: leave out --format and --out")
    chosen_format = file_format or _by_ending(out)
    if out is None and chosen_format == "parquet":
        raise UsageError("Parquet is no text to print: name a file with --out answers.parquet")
    if shard and (out is None or chosen_format != "parquet"):
        raise UsageError("--shard writes a Parquet file of its own: give --out answers.parquet")
    if shard and log:
        raise UsageError("--log records one run in order: leave it out, or --shard")
    parts = every(shard) if shard else None
    if ray and parts is None:
        raise UsageError("--ray runs many parts: say how many with --shard all/COUNT")
    if parts is not None:
        typed = arguments_of(click.get_current_context(), ["shard", "ray"])
        raise typer.Exit(max(run_all(typed, parts, ray=ray), key=_WORST.index))
    part = Shard.parse(shard) if shard else Shard(1, 1)
    bundle = find_bundle(model)
    from pfedmma_deploy.runtime.sources import find_images

    # Before the model is loaded: a wrong path is named at once, and the bar knows its end.
    total, names_hash = listing(find_images(images))
    from pfedmma_deploy.runtime import Classifier
    from pfedmma_deploy.runtime.bundle import VISION_MODEL
    from pfedmma_deploy.runtime.certainty import checked_terms

    classifier = Classifier.load(bundle, device, threads)
    if device == "auto" and classifier.fallback_reason and output.verbose:
        output.note(f"note: computing on the CPU: {classifier.fallback_reason}")
    chosen = client or _default_client(classifier, output)
    clients: list[str | int] = [chosen, 0] if compare else [chosen]
    names = split_names(classes)
    answers = min(top, len(names or classifier.class_names))
    infos = [classifier.clients[classifier.bundle.client_index(one)] for one in clients]
    judged = negatives is not None or any(info.calibration for info in infos)
    settings = {
        "model": classifier.manifest.files[VISION_MODEL].sha256,
        "client": str(chosen),
        "strength": strength,
        "classes": names,
        "top": top,
        "accept": accept,
        "coverage": coverage,
        "negatives": split_names(negatives),
        "compare": compare,
        "judged": judged,
        "batch_size": batch_size,
        "shard": str(part),
        "images": total,
        "names_sha256": names_hash,
    }
    if shard and out:
        out = part.file(out)
        if is_done(out, settings):
            output.note(f"{out} is done already")
            return
    taken: Iterable[Path] = find_images(images)
    if shard:
        taken, total = part.of(taken, total, batch_size), part.size(total, batch_size)
    outcomes = _outcomes(
        classifier,
        taken,
        clients,
        names,
        top if log is None else len(names or classifier.class_names),
        strength=strength,
        accept=accept,
        coverage=coverage,
        negatives=split_names(negatives),
        batch_size=batch_size,
    )
    terms = checked_terms(accept, coverage, split_names(negatives))
    if out or chosen_format == "table" or not output.stdout.isatty():
        # Elsewhere a bar would run through the rows.
        outcomes = output.progress.track(outcomes, "images", total)
    counts = {"found": 0, "skipped": 0}
    outcomes = _counted(outcomes, counts, output)
    with ExitStack() as open_files:
        if log is not None:
            outcomes = _recorded(outcomes, log, top, classifier, names, terms, open_files)
        if out and chosen_format == "parquet":
            partial = open_files.enter_context(replaced(out))
            write_parquet(outcomes, partial, settings)
        else:
            _print(outcomes, output, out, chosen_format, answers, compare=compare, judged=judged)
    found, skipped = counts.values()
    if skipped:
        output.note(f"{skipped} of {found + skipped} images could not be read")
    for info in infos:
        _note_few_images(info, terms, output)
    if out and not output.as_json:
        output.note(f"Wrote {out}")
    if skipped:
        raise typer.Exit(SOME_SKIPPED if found else 1)


def _print(
    outcomes: Iterable[Outcome],
    output: Output,
    out: Path | None,
    chosen_format: Format,
    answers: int,
    *,
    compare: bool,
    judged: bool,
) -> None:
    """The outcomes as text, on stdout or in a file."""
    with destination(out, output.stdout) as stream:
        if output.as_json:
            print_object(outcomes, output, judged=judged)
        elif chosen_format == "csv":
            write_csv(outcomes, stream, answers, compare=compare, judged=judged)
        elif chosen_format == "jsonl":
            write_lines(outcomes, stream, judged=judged)
        else:
            write_table(outcomes, Output(stream, as_json=False, quiet=output.quiet))


def _recorded(
    outcomes: Iterable[Outcome],
    file: Path,
    top: int,
    classifier: Classifier,
    names: list[str] | None,
    terms: Terms,
    open_files: ExitStack,
) -> Iterator[Outcome]:
    """The same outcomes with `top` classes each, once all of them are in the record `file`."""
    from pfedmma_deploy.runtime.bundle import file_sha256
    from pfedmma_deploy.runtime.record import AnswerLog

    typed = None if names is None else tuple(names)
    record = open_files.enter_context(AnswerLog(file, classifier, typed, terms))

    def recorded() -> Iterator[Outcome]:
        for outcome in outcomes:
            if not isinstance(outcome, tuple):
                yield outcome
                continue
            sha256 = file_sha256(Path(outcome[0].source))
            for prediction in outcome:
                record.write(prediction, sha256)
            yield tuple(replace(one, top=one.top[:top]) for one in outcome)

    return recorded()


def _note_few_images(client: ClientInfo, terms: Terms, output: Output) -> None:
    """Say where a client has too few validation images for what was asked."""
    found = client.calibration
    if found is None:
        return
    said = f"note: client {client.id} was calibrated on {found.images} images, too few"
    if terms.accept not in {None, 1} and found.threshold(terms.accept or 1) is None:
        output.note(f"{said} to call anything unknown")
    if terms.coverage is not None and found.least_probability(terms.coverage) == 0:
        output.note(f"{said} for --coverage {terms.coverage:g}: its sets hold every class")


def _default_client(classifier: Classifier, output: Output) -> str | int:
    """The bundle's only personalized client, or else zero-shot, which is said."""
    ids = [info.id for info in classifier.clients[1:]]
    if len(ids) == 1:
        return ids[0]
    output.note(f"note: zero-shot, since no --client is named (clients: {', '.join(ids[:12])})")
    return 0


def _by_ending(out: Path | None) -> Format:
    endings: dict[str, Format] = {
        ".csv": "csv",
        ".jsonl": "jsonl",
        ".ndjson": "jsonl",
        ".parquet": "parquet",
    }
    return endings.get(out.suffix.lower(), "table") if out else "table"


def _outcomes(
    classifier: Classifier,
    images: Iterable[Path],
    clients: Sequence[str | int],
    names: list[str] | None,
    top: int,
    **options: Any,
) -> Iterator[Outcome]:
    """Of each image what the clients answer, or why it was skipped, in order."""
    skipped: deque[Skipped] = deque()
    for predictions in classifier.iter_compare(
        images, clients, names, top, on_skip=skipped.append, **options
    ):
        # Decoding runs ahead of the model: these came before this image.
        while skipped:
            yield skipped.popleft()
        yield predictions
    yield from skipped


def _counted(
    outcomes: Iterable[Outcome], counts: dict[str, int], output: Output
) -> Iterator[Outcome]:
    """The same outcomes; what was skipped is said on stderr."""
    for outcome in outcomes:
        if isinstance(outcome, tuple):
            counts["found"] += 1
        else:
            counts["skipped"] += 1
            output.note(f"skipped {printable(outcome.path)}: {outcome.reason}")
        yield outcome


def write_lines(outcomes: Iterable[Outcome], stream: TextIO, *, judged: bool = False) -> None:
    """One JSON object a line, written at once: as in `--json`, or `{"path", "skipped"}`."""
    for outcome in outcomes:
        if isinstance(outcome, tuple):
            values = as_dict(outcome, judged=judged)
        else:
            values = {"path": printable(outcome.path), "skipped": outcome.reason}
        print(json.dumps(values, ensure_ascii=False), file=stream, flush=True)


def write_csv(
    outcomes: Iterable[Outcome],
    stream: TextIO,
    answers: int,
    *,
    compare: bool,
    judged: bool = False,
) -> None:
    """Comma-separated values with a heading, one image a row, written at once.

    There is room for `answers` classes an image, twice as many with `compare`; with `judged` also
    for the answer that counts, its scores and the classes that are likely. A text that a
    spreadsheet would take for a formula (it begins with `=`, `+`, `-`, `@`, a tab or a line feed)
    gets an apostrophe in front, a path `./`, which changes nothing about the path.
    """
    rows = csv.writer(stream, lineterminator="\n")
    columns = ["path", "client"]
    for prefix in ("", "zero_shot_") if compare else ("",):
        for number in range(1, answers + 1):
            columns += [f"{prefix}class_{number}", f"{prefix}probability_{number}"]
        if judged:
            columns += [f"{prefix}{name}" for name in ("answer", "known", "threshold", "likely")]
    rows.writerow([*columns, "skipped"])
    stream.flush()
    for outcome in outcomes:
        if isinstance(outcome, tuple):
            cells = [_harmless_path(outcome[0].source), _harmless(outcome[0].client)]
            for prediction in outcome:
                for score in prediction.top:
                    cells += [_harmless(score.name), f"{score.probability:.6f}"]
                if judged:
                    cells += _verdict_cells(prediction)
            rows.writerow([*cells, ""])
        else:
            nothing = [""] * (len(columns) - 1)
            rows.writerow([_harmless_path(outcome.path), *nothing, _harmless(outcome.reason)])
        stream.flush()


def _verdict_cells(prediction: Prediction) -> list[str]:
    """The answer that counts, the score of being known, its threshold, the likely classes."""
    verdict = prediction.verdict
    numbers = ["" if x is None else f"{x:.6f}" for x in (verdict.known, verdict.threshold)]
    likely = "; ".join(verdict.likely or ())
    return [_harmless(prediction.answer), *numbers, _harmless(likely)]


def write_table(outcomes: Iterable[Outcome], output: Output) -> None:
    """Aligned columns; held until the end, since widths depend on all rows."""
    rows, columns = [], []
    for outcome in outcomes:
        if isinstance(outcome, tuple):
            columns = ["Image", f"Client {outcome[0].client}", "Zero-shot"][: 1 + len(outcome)]
            cells = [printable(outcome[0].source)]
            for prediction in outcome:
                cells.append(_cell(prediction))
            rows.append(cells)
    if rows:
        output.table(columns, rows)


def _cell(prediction: Prediction) -> str:
    """One model's answers in a table."""
    text = ", ".join(f"{score.name} {score.probability:.0%}" for score in prediction.top)
    verdict = prediction.verdict
    if verdict.is_unknown:
        why = "" if verdict.negative is None else f": {verdict.negative}"
        text = f"{prediction.answer}{why} ({text})"
    if verdict.likely is not None:
        text += f" {{{', '.join(verdict.likely)}}}"
    return text


def print_object(outcomes: Iterable[Outcome], output: Output, *, judged: bool = False) -> None:
    """`--json`: everything in one object, held until the end."""
    predictions, skipped = [], []
    for outcome in outcomes:
        if isinstance(outcome, tuple):
            predictions.append(as_dict(outcome, judged=judged))
        else:
            skipped.append({"path": printable(outcome.path), "reason": outcome.reason})
    output.result({"predictions": predictions, "skipped": skipped})


def as_dict(predictions: Sequence[Prediction], *, judged: bool = False) -> dict[str, Any]:
    """One image's answers, JSON-ready; with `judged` also whether they count."""
    tops = [
        [{"class": score.name, "probability": score.probability} for score in prediction.top]
        for prediction in predictions
    ]
    first = predictions[0]
    values = {
        "path": printable(first.source),
        "client": first.client,
        "strength": first.strength,
        "top": tops[0],
    }
    if judged:
        values |= verdict_dict(first)
    if len(tops) == 1:
        return values
    values["zero_shot"] = tops[1]
    if judged:
        values["zero_shot_verdict"] = verdict_dict(predictions[1])
    return values


def verdict_dict(prediction: Prediction) -> dict[str, Any]:
    """Whether an answer counts, JSON-ready."""
    verdict = prediction.verdict
    values = {"answer": prediction.answer, "known": verdict.known, "threshold": verdict.threshold}
    if verdict.negative is not None:
        values["negative"] = verdict.negative
    return values if verdict.likely is None else {**values, "likely": list(verdict.likely)}


@contextmanager
def destination(out: Path | None, stdout: TextIO) -> Iterator[TextIO]:
    """`stdout`, or a file that gets its name `out` only when the block has ended well.

    Raises:
        UsageError: `out` is no place for a file.
    """
    if out is None:
        yield stdout
        return
    with replaced(out) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        yield stream


@contextmanager
def replaced(out: Path) -> Iterator[Path]:
    """A path beside `out`; what is written there gets that name when the block has ended well.

    Raises:
        UsageError: `out` is no place for a file.
    """
    target = out.resolve()
    if target.exists() and not target.is_file():
        raise UsageError(f"--out {out} is no regular file: name a new one, or one to replace")
    if not target.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}; make it first")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def printable(text: str) -> str:
    r"""A file name as text that any stream takes and no terminal obeys, odd characters as \x1b."""
    text = os.fsencode(text).decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def _harmless_path(path: str) -> str:
    text = printable(path)
    return f"./{text}" if text.startswith(("=", "+", "-", "@")) else text
