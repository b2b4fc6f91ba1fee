"""`pfedmma methods`: which methods there are, and what can be set of each."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from .options import flag, with_output
from .output import Output

if TYPE_CHECKING:
    from pfedmma_deploy.report.methods import HyperParameter, MethodFacts


@with_output
def methods(
    output: Output,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One method, with its hyper-parameters.")
    ] = None,
    backbone: Annotated[
        str, flag("open_clip model that sizes are counted for; not downloaded.", "NAME")
    ] = "ViT-B-16",
) -> None:
    """List the methods, or show one of them with its hyper-parameters.

    What each trains and shares, how many bytes travel, whether a client's model merges into plain
    CLIP weights, whether it can be exported, and its paper.

    \b
    Examples:
      pfedmma methods
      pfedmma methods --backbone pfedmma-tiny
      pfedmma methods pfedmoap
      pfedmma methods --json
    """
    from pfedmma_deploy.backbone.loading import backbone_shapes
    from pfedmma_deploy.methods.registry import get_method
    from pfedmma_deploy.report.methods import all_facts, hyper_parameters, method_facts

    shapes = backbone_shapes(backbone)
    if name is not None:
        facts = method_facts(get_method(name), shapes)
        known = hyper_parameters(facts.method)
        _show(output, facts, known, backbone)
        output.result({**facts.to_dict(), "hyper_parameters": [asdict(p) for p in known]})
        return
    rows, problems = all_facts(shapes)
    _list(output, rows, backbone)
    for facts in rows:
        if facts.package is not None:
            output.note(f"{facts.method.name} is of {facts.package}")
    for sentence in problems:
        output.note(f"warning: {sentence}")
    output.note("Hyper-parameters of one: pfedmma methods NAME")
    values = {"backbone": backbone, "methods": [facts.to_dict() for facts in rows]}
    output.result({**values, "problems": problems})


def _list(output: Output, rows: list[MethodFacts], backbone: str) -> None:
    output.table(
        ["Method", "A client trains", "It shares"],
        [[f.method.name, f.method.trained, f.method.shared] for f in rows],
    )
    output.say("")
    output.table(
        ["Method", "Trained", "Shared", "Bytes up", "Bytes down", "Merges", "ONNX", "Paper"],
        [
            [
                f.method.name,
                f"{f.trained:,}",
                f"{f.shared:,}",
                f"{f.bytes_up:,}",
                f"{f.bytes_down:,}",
                _yes(f.method.merges),
                _yes(not f.method.export_blocker),
                f.method.paper,
            ]
            for f in rows
        ],
        f"Numbers and bytes per client and round on {backbone}",
    )


def _show(output: Output, facts: MethodFacts, known: list[HyperParameter], backbone: str) -> None:
    method = facts.method
    output.say(f"{method.name}: {method.paper}")
    output.say(f"A client trains: {method.trained} ({facts.trained:,} numbers on {backbone})")
    output.say(f"It shares: {method.shared} ({facts.shared:,} numbers)")
    output.say(f"Bytes per client and round: {facts.bytes_up:,} up, {facts.bytes_down:,} down")
    output.say(f"Merges into plain CLIP weights: {_yes(method.merges)}")
    reason = f": {method.export_blocker}" if method.export_blocker else ""
    output.say(f"Exports to ONNX: {_yes(not method.export_blocker)}{reason}")
    if method.defaults:
        own = ", ".join(f"{option} = {value}" for option, value in method.defaults.items())
        output.say(f"Options with a default of their own: {own}")
    if not known:
        output.say("It has no hyper-parameters.")
        return
    output.say("")
    rows = [[p.name, _written(p.default), p.meaning] for p in known]
    output.table(["Hyper-parameter", "Default", "Meaning"], rows)
    first = known[0]
    output.note(
        f"Set them so: pfedmma train --method {method.name} "
        f"--set {first.name}={_written(first.default)}"
    )


def _written(value: str | float | bool) -> str:
    """A value as --set reads it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
