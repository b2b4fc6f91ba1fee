"""`pfedmma evaluate`: accuracy of a run, or of a backbone as it is."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated

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
    from pfedmma_deploy.api import evaluate as evaluate_any

    started = time.perf_counter()
    if data is None and backbone is None:
        opened = open_run(run)
        values = evaluate_any(opened, strength=strength, progress=output.progress).to_dict()
        title = f"{opened.folder}: means over {len(values['clients'])} clients"
        print_evaluation(output, values, title)
        seconds = time.perf_counter() - started
        output.result({"run": str(opened.folder), **values, "seconds": seconds})
        return
    found = evaluate_any(
        run,
        strength=strength,
        data=data,
        backbone=backbone,
        pretrained=pretrained,
        prompt=prompt,
        progress=output.progress,
    )
    figures = asdict(found)
    title = f"Zero-shot accuracy of {backbone} on {figures['images']} images of {data}"
    rows: list[Row] = [*figures["domains"].items(), ("all", figures["accuracy"])]
    output.table(["Domain", "Accuracy in %"], rows, title)
    output.result(
        {
            "data": data,
            "backbone": backbone,
            **figures,
            "seconds": time.perf_counter() - started,
        }
    )
