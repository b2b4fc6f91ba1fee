"""`pfedmma predict`: images in, labels out, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfedmma_deploy.errors import DataError

from .options import AsJson, Quiet, Verbose, find_bundle, split_names
from .output import Output, open_output

if TYPE_CHECKING:
    from pfedmma_deploy.runtime import Classifier, ClassScore, Prediction
    from pfedmma_deploy.types import Skipped


def predict(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGES...", help="Image files, or folders of them.")
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
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", help="Where to compute.")
    ] = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Classify images, without torch.

    \b
    Examples:
      pfedmma predict photo.jpg --client 3
      pfedmma predict photos/ --model exports/sites --client 3 --compare
      pfedmma predict photo.jpg --client 3 --classes "cat,dog,a steam locomotive" --json
    """
    with open_output(as_json=as_json, quiet=quiet) as output:
        bundle = find_bundle(model)
        paths = list(_expand(images))
        from pfedmma_deploy.runtime import Classifier

        classifier = Classifier.load(bundle, device)
        if device == "auto" and classifier.fallback_reason and verbose:
            output.note(f"note: computing on the CPU: {classifier.fallback_reason}")
        chosen = client or _default_client(classifier, output)
        skipped: list[Skipped] = []
        names = split_names(classes)
        found = _predict(classifier, paths, chosen, names, top, output, skipped)
        readable = [Path(prediction.source) for prediction in found]
        plain = classifier.predict(readable, 0, names, top) if compare else None
        _print(output, found, plain, skipped)
        output.result(
            {
                "predictions": [
                    _as_dict(prediction, plain[i] if plain else None)
                    for i, prediction in enumerate(found)
                ],
                "skipped": [{"path": entry.path, "reason": entry.reason} for entry in skipped],
            }
        )
    if not found:
        raise typer.Exit(1)


def _expand(images: Iterable[Path]) -> Iterator[Path]:
    """Files as they are, folders as the images somewhere below them in the order of their names."""
    from pfedmma_deploy.data.images import is_image_name

    for path in images:
        if not path.is_dir():
            yield path
            continue
        inside = sorted(entry for entry in path.rglob("*") if is_image_name(entry.name))
        if not inside:
            raise DataError(f"the folder {path} holds no images (.jpg, .png, .webp or .bmp)")
        yield from inside


def _default_client(classifier: Classifier, output: Output) -> str | int:
    """The bundle's only personalized client, or else zero-shot, which is said."""
    ids = [info.id for info in classifier.clients[1:]]
    if len(ids) == 1:
        return ids[0]
    output.note(f"note: zero-shot, since no --client is named (clients: {', '.join(ids[:12])})")
    return 0


def _predict(
    classifier: Classifier,
    paths: list[Path],
    client: str | int,
    names: list[str] | None,
    top: int,
    output: Output,
    skipped: list[Skipped],
) -> list[Prediction]:
    tracked = output.progress.track(paths, "images", len(paths))
    return list(classifier.iter_predict(tracked, client, names, top, on_skip=skipped.append))


def _as_dict(prediction: Prediction, plain: Prediction | None) -> dict[str, Any]:
    def answers(scores: Iterable[ClassScore]) -> list[dict[str, Any]]:
        return [{"class": score.name, "probability": score.probability} for score in scores]

    values = {
        "path": prediction.source,
        "client": prediction.client,
        "top": answers(prediction.top),
    }
    return values if plain is None else {**values, "zero_shot": answers(plain.top)}


def _print(
    output: Output,
    found: list[Prediction],
    plain: list[Prediction] | None,
    skipped: list[Skipped],
) -> None:
    def text(prediction: Prediction) -> str:
        return ", ".join(f"{score.name} {score.probability:.0%}" for score in prediction.top)

    rows = [[prediction.source, text(prediction)] for prediction in found]
    columns = ["Image", f"Client {found[0].client}" if found else "Answer"]
    if plain is not None:
        columns.append("Zero-shot")
        rows = [[*row, text(other)] for row, other in zip(rows, plain, strict=True)]
    if rows:
        output.table(columns, rows)
    for entry in skipped:
        output.note(f"skipped {entry.path}: {entry.reason}")
