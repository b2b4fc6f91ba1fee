"""`pfedmma monitor`: recorded answers against the clients' own images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfedmma_deploy.errors import UsageError

from .embed import Model
from .options import find_bundle, flag, with_output
from .output import Output

if TYPE_CHECKING:
    from pfedmma_deploy.runtime.monitor import Drift
    from pfedmma_deploy.runtime.record import Entry

CHANGED = 4
"""Exit code where an alarm was raised."""


@with_output
def monitor(
    output: Output,
    record: Annotated[Path, typer.Argument(metavar="RECORD", help="Made by predict --log.")],
    model: Model = None,
    chance: Annotated[
        float, flag("Of an alarm though nothing has changed, over all clients.", "SHARE")
    ] = 0.02,
    plot: Annotated[
        Path | None, flag("Draw the scores of being known, as .png, .svg or .pdf.", "FILE")
    ] = None,
) -> None:
    """Say whether recorded answers are still like those to the clients' own images.

    Compares the score of being known and the probability of the answer with those of the images
    that each client was calibrated on. Exit code 4 where one has changed by more than chance.

    \b
    Examples:
      pfedmma monitor answers.jsonl
      pfedmma monitor answers.jsonl --model exports/sites --chance 0.01 --json
      pfedmma monitor answers.jsonl --plot drift.png
    """
    # Written so that NaN does not pass.
    if not 0 < chance < 1:
        raise UsageError(f"--chance is a share above 0 and below 1, found {chance:g}: try 0.02")
    from pfedmma_deploy.runtime.bundle import Bundle
    from pfedmma_deploy.runtime.monitor import monitor as monitor_entries
    from pfedmma_deploy.runtime.record import bundle_sha256, read_record

    bundle = Bundle.open(find_bundle(model))
    hash_, left_out = bundle_sha256(bundle), 0

    def own() -> Iterator[Entry]:
        nonlocal left_out
        for _, entry in read_record(record):
            if entry is None or entry["bundle"] != hash_:
                left_out += 1
            else:
                yield entry

    states = monitor_entries(own(), bundle.manifest, chance)
    if left_out:
        output.note(f"{left_out:,} lines are cut off or of another bundle, and left out")
    if not states:
        raise UsageError(
            f"{record} has no answer of {bundle.path} among its own class names: name the bundle "
            "that gave them with --model."
        )
    rows: list[list[str]] = []
    for one in states:
        best = ", ".join(f"{name} {share:.0f}%" for name, share in list(one.classes.items())[:3])
        state = "changed" if one.is_alarm else "as before" if one.known else "no reference"
        drifts = _drift(one.known), _drift(one.confidence)
        rows.append([one.client, str(one.answers), f"{one.unknown:.1f}", *drifts, best, state])
    columns = ["Client", "Answers", "Unknown, %", "Known", "Confidence", "Most frequent", "State"]
    output.table(columns, rows)
    alarms = [one.client for one in states if one.is_alarm]
    if plot is not None:
        from pfedmma_deploy.report.drift import draw_drift

        draw_drift(own(), bundle.manifest, plot)
        output.note(f"Wrote {plot}")
    output.result({"clients": [one.to_dict() for one in states], "alarms": alarms})
    if alarms:
        raise typer.Exit(CHANGED)


def _drift(found: Drift | None) -> str:
    """A mean now and before, with a mark where it counts as changed."""
    if found is None:
        return "-"
    return f"{found.now:.2f} of {found.reference:.2f}{' !' if found.is_alarm else ''}"
