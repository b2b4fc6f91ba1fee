"""`pfedmma doctor`: is this installation well, and what to do where it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pfedmma_deploy.export import EXPORTS

from .options import flag, with_output
from .output import Output

if TYPE_CHECKING:
    from pfedmma_deploy.report.doctor import Check, Diagnosis


@with_output
def doctor(
    output: Output,
    device: Annotated[
        Literal["auto", "cpu", "cuda", "tensorrt"],
        flag("What is to work; auto takes CUDA, else the CPU."),
    ] = "auto",
) -> None:
    """Check the installation, and say what to do about each problem.

    What is installed and fits together, which execution providers really run a model, driver and
    CUDA libraries, where caches, runs and bundles are. Exit code 1 where something that was asked
    for cannot work.

    \b
    Examples:
      pfedmma doctor
      pfedmma doctor --device cuda
      pfedmma doctor --json
    """
    from pfedmma_deploy.report.doctor import diagnose

    diagnosis = diagnose(device, exports=EXPORTS, progress=output.progress)
    _print(output, diagnosis)
    output.result(diagnosis.to_dict())
    if not diagnosis.works:
        raise typer.Exit(1)


def _print(output: Output, diagnosis: Diagnosis) -> None:
    rows = [[_state(c), c.name, c.found] for c in diagnosis.checks]
    output.table(["", "Check", "Found"], rows)
    for check in diagnosis.checks:
        if check.advice:
            output.say(f"{check.name}: {check.advice}")
    if not diagnosis.works:
        output.say(f"What --device {diagnosis.device} needs cannot work yet.")
    elif diagnosis.problems:
        output.say(f"Works with --device {diagnosis.device}; see above for what does not.")
    else:
        output.say(f"All is well for --device {diagnosis.device}.")


def _state(check: Check) -> str:
    if check.ok:
        return "" if check.absent else "ok"
    return "FAIL" if check.stops else "warn"
