"""`pfedmma evaluate`: accuracy of a run, or of a backbone as it is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from pfedmma_deploy.errors import UsageError

from .options import RunFolder, flag, open_run, with_output
from .output import Output, Row, print_evaluation


@with_output
def evaluate(
    output: Output,
    run: RunFolder = None,
    strength: Annotated[
        float | None,
        flag("Of every client, 0 to 1.5; 1 is as trained. [default: each one's own]", "A"),
    ] = None,
    data: Annotated[
        str | None, flag("Instead of a run: zero-shot on these images.", "NAME_OR_DIR")
    ] = None,
    backbone: Annotated[str | None, flag("The backbone to test with --data.", "NAME")] = None,
    pretrained: Annotated[str | None, flag("open_clip tag or weights file.", "TAG_OR_FILE")] = None,
    prompt: Annotated[
        str, flag("Text around a class name, with --data.", "TEXT")
    ] = "a photo of a {}.",
) -> None:
    """Compare every client with zero-shot CLIP.

    Or, with --data, measure a backbone as it is, without training.

    Local: the client's own classes; base: all classes trained on; novel: classes never seen.
    All: base and novel images among base and novel names together, as a deployed model is asked.
    HM2 and HM3 are harmonic means of base and novel, and of local, base and novel.

    \b
    Examples:
      pfedmma evaluate
      pfedmma evaluate --run runs/sites --strength 1 --json
      pfedmma evaluate --data domains-sample --backbone pfedmma-tiny
    """
    if data is None and backbone is None:
        _evaluate_run(run, strength, output)
    elif data is None or backbone is None:
        missing = "--backbone" if backbone is None else "--data"
        raise UsageError(f"zero-shot accuracy needs --data and --backbone: {missing} is missing")
    elif strength is not None:
        raise UsageError("--strength belongs to a run's clients: leave it out with --data")
    elif run is not None:
        raise UsageError("--run and --data exclude each other: a run names its own data")
    else:
        _evaluate_zero_shot(data, backbone, pretrained, prompt, output)


def _evaluate_run(folder: Path | None, strength: float | None, output: Output) -> None:
    run = open_run(folder)
    from pfedmma_deploy.federated.evaluate import evaluate_run
    from pfedmma_deploy.runtime.bundle import checked_strength

    given = None if strength is None else checked_strength(strength)
    started = time.perf_counter()
    values = evaluate_run(run, strength=given, progress=output.progress).to_dict()
    title = f"{run.folder}: means over {len(values['clients'])} clients"
    print_evaluation(output, values, title)
    output.result({"run": str(run.folder), **values, "seconds": time.perf_counter() - started})


def _evaluate_zero_shot(
    data: str, backbone: str, pretrained: str | None, prompt: str, output: Output
) -> None:
    from pfedmma_deploy.data.datasets import load_dataset

    dataset = load_dataset(data, progress=output.progress)
    from pfedmma_deploy.backbone.loading import load_backbone
    from pfedmma_deploy.evaluation.zero_shot import evaluate_zero_shot

    started = time.perf_counter()
    model = load_backbone(backbone, pretrained)
    result = evaluate_zero_shot(model, dataset, prompt, progress=output.progress)
    title = f"Zero-shot accuracy of {backbone} on {result.images} images of {data}"
    rows: list[Row] = [*result.domains.items(), ("all", result.accuracy)]
    output.table(["Domain", "Accuracy in %"], rows, title)
    output.result(
        {
            "data": data,
            "backbone": backbone,
            "images": result.images,
            "accuracy": result.accuracy,
            "domains": result.domains,
            "classes": result.classes,
            "seconds": time.perf_counter() - started,
        }
    )
