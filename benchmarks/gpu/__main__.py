"""One step of `benchmarks/gpu.sh`, in a process of its own.

    python -m benchmarks.gpu STEP --out DIR --scratch DIR [--small]

Rows go to `results.jsonl` below --out, each as soon as it is measured: a step that fails or is cut
off loses nothing of what was there.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.gpu import inference, photos, summary, training
from benchmarks.gpu.plan import COMPILED_BF16, FULL, Plan, Reporter, small
from pfedmma_deploy.benchmark.report import Row
from pfedmma_deploy.benchmark.training import training_gpu
from pfedmma_deploy.system import available_cores, describe_environment

Step = Callable[[Plan, Path, Reporter], None]


def peak(plan: Plan, scratch: Path, report: Reporter) -> None:
    """The machine, before anything is measured, and what it reaches."""
    found = describe_environment(available_cores(), gpu=training_gpu())
    report({"measure": "environment", **found.to_dict()})
    inference.peak(plan, scratch, report)


def training_compiled(plan: Plan, scratch: Path, report: Reporter) -> None:
    """Rounds with compiled blocks alone: compiling takes longer than all else."""
    training.rounds(replace(plan, ways=(COMPILED_BF16,)), scratch, report)


STEPS: Final[dict[str, Step]] = {
    "peak": peak,
    "export": partial(inference.export, place=0),
    "export-second": partial(inference.export, place=1),
    "rates": partial(inference.rates, place=0),
    "rates-second": partial(inference.rates, place=1),
    "clients": inference.clients,
    "tensorrt": inference.tensorrt,
    "photos": photos.photos,
    "training": training.rounds,
    "training-compiled": training_compiled,
    "paper": training.paper,
    "profile": training.profiles,
}


def append(file: Path, row: Row) -> None:
    """Add a line, and have it on disk before anything else is measured."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row, allow_nan=False) + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("step", choices=[*STEPS, "summary"])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--scratch", type=Path, help="folder of exported models")
    parser.add_argument("--small", action="store_true", help="the same in small, on any machine")
    given = parser.parse_args()
    results = given.out / "results.jsonl"
    if given.step == "summary":
        print(summary.write(results, given.out, is_small=given.small))
        return
    plan = small() if given.small else FULL
    if plan.device == "cuda" and training_gpu() is None:
        raise SystemExit("torch sees no CUDA device here: --small runs on any machine.")
    STEPS[given.step](plan, given.scratch, partial(append, results))


if __name__ == "__main__":
    main()
