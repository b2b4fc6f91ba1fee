"""`pfedmma replay`: recorded answers, given again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from .embed import Device, Model
from .options import find_bundle, with_output
from .output import Output
from .predict import printable


@with_output
def replay(
    output: Output,
    record: Annotated[Path, typer.Argument(metavar="RECORD", help="Made by predict --log.")],
    model: Model = None,
    device: Device = "auto",
) -> None:
    """Give recorded answers again and compare.

    An answer is repeated where the class or `unknown` is the same and no probability differs by
    more than 0.0001. Exit code 1 where one differs, or its image or bundle is not what it was.

    \b
    Examples:
      pfedmma replay answers.jsonl
      pfedmma replay answers.jsonl --model exports/sites --json
    """
    from pfedmma_deploy.runtime import Classifier
    from pfedmma_deploy.runtime.record import replay as replay_record

    classifier = Classifier.load(find_bundle(model), device)
    counts: Counter[str] = Counter()
    largest, others = 0.0, []
    for one in replay_record(record, classifier):
        counts[one.outcome] += 1
        largest = max(largest, one.difference)
        if one.outcome != "repeated":
            entry = {"line": one.line, "path": printable(one.path), "outcome": one.outcome}
            others.append({**entry, "detail": one.detail})
            output.note(f"line {one.line}, {printable(one.path)}: {one.outcome} {one.detail}")
    total = counts.total()
    output.say(
        f"{counts['repeated']:,} of {total:,} answers repeated, largest difference of a "
        f"probability {largest:.1e}"
    )
    output.result(
        {
            "answers": total,
            "repeated": counts["repeated"],
            "max_difference": largest,
            "others": others,
        }
    )
    if others:
        raise typer.Exit(1)
