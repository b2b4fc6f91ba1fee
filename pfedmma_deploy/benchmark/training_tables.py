"""The tables of the training benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pfedmma_deploy.benchmark.report import Section
from pfedmma_deploy.benchmark.round_flop import RoundFlop
from pfedmma_deploy.benchmark.scale import ScaleResult
from pfedmma_deploy.benchmark.training import (
    OURS,
    SAME_PRODUCTS,
    STRAIGHT,
    TrainingSeconds,
    TrainingTask,
    weight_difference,
)

NOTE = (
    "A round is the training of all participants and the evaluation of each on all test images. "
    "Straight: client by client, everything recomputed, prompts at 77 tokens. Bound: straight over "
    "ours in counted operations of the frozen towers, the most that leaving out can win with the "
    "same products. Torch's products: by torch's default library, as in the straight reading; the "
    "others use oneDNN where that is faster. Prefixes: seconds once, before the first round, that "
    "fill the cache. "
    "Difference: largest one of any shared weight after the rounds, from straight."
)


@dataclass(frozen=True)
class Timed:
    """A task, what it should cost, and what it took."""

    task: TrainingTask
    flop: RoundFlop
    subjects: Sequence[TrainingSeconds]

    def to_rows(self) -> list[dict[str, Any]]:
        """JSON-ready, one per subject; `images_per_second` counts training images in training."""
        names = {one.name for one in self.subjects}
        bounded = SAME_PRODUCTS if SAME_PRODUCTS in names else OURS
        straight = next((one for one in self.subjects if one.name == STRAIGHT), None)
        trained = self.task.participants * (
            self.task.classes * self.task.shots // self.task.clients
        )
        rows = []
        for one in self.subjects:
            ratio = None if straight is None or one is straight else straight.round / one.round
            rows.append(
                {
                    "measure": "train",
                    "backbone": self.task.backbone,
                    "name": one.name,
                    "clients": self.task.clients,
                    "participants": self.task.participants,
                    "classes": self.task.classes,
                    "shots": self.task.shots,
                    "images_per_second": trained / one.train,
                    "seconds_per_round": one.round,
                    "seconds_training": one.train,
                    "seconds_evaluation": one.evaluate,
                    "seconds_per_step": one.step,
                    "seconds_prefixes": one.prefixes,
                    "peak_memory": one.memory,
                    "peer": None if ratio is None else STRAIGHT,
                    "ratio": ratio,
                    "bound": self.flop.bound,
                    "share_of_bound": (
                        ratio / self.flop.bound
                        if ratio is not None and one.name == bounded
                        else None
                    ),
                    "weight_difference": (
                        None if ratio is None else weight_difference(straight, one)  # type: ignore[arg-type]  # a ratio has one
                    ),
                }
            )
        return rows


def round_section(timed: Sequence[Timed]) -> Section:
    """Rounds, side by side."""
    columns = [
        "Backbone", "Classes", "Shots", "Clients", "Way", "Round s", "Training s", "Evaluation s",
        "Step ms", "Prefixes s", "Peak GB", "x straight", "Bound", "Of bound", "Difference",
    ]  # fmt: skip
    cells = [
        [
            row["backbone"],
            str(row["classes"]),
            str(row["shots"]),
            f"{row['participants']} of {row['clients']}",
            row["name"],
            f"{row['seconds_per_round']:.1f}",
            f"{row['seconds_training']:.1f}",
            f"{row['seconds_evaluation']:.1f}",
            f"{1000 * row['seconds_per_step']:.0f}",
            f"{row['seconds_prefixes']:.1f}",
            f"{row['peak_memory'] / 1e9:.1f}",
            _number(row["ratio"], "{:.2f}"),
            f"{row['bound']:.2f}",
            _number(row["share_of_bound"], "{:.0%}"),
            _number(row["weight_difference"], "{:.0e}"),
        ]
        for one in timed
        for row in one.to_rows()
    ]
    return Section("One round", NOTE, columns, cells, [])


def curve_section(rows: Sequence[tuple[TrainingTask, RoundFlop]]) -> Section:
    """What a round costs as the federation grows, counted."""
    columns = ["Backbone", "Clients", "Classes", "Shots", "Straight TFLOP", "Ours TFLOP", "Bound"]
    cells = [
        [
            task.backbone,
            str(task.clients),
            str(task.classes),
            str(task.shots),
            f"{flop.straight / 1e12:.2f}",
            f"{flop.ours / 1e12:.2f}",
            f"{flop.bound:.2f}",
        ]
        for task, flop in rows
    ]
    note = "Counted operations of one round, evaluation included (not measured)."
    return Section("Cost of a round", note, columns, cells, [])


def accuracy_section(rows: Sequence[dict[str, Any]]) -> Section:
    """Seconds to an accuracy."""
    cells = [
        [
            row["name"],
            f"{row['target']:.0f} %",
            str(row["round"] or "not reached"),
            _number(row["seconds"], "{:.1f}"),
            _number(row["ratio"], "{:.2f}"),
        ]
        for row in rows
    ]
    note = (
        "The quickstart's federation (pfedmma-tiny, cifar10-sample): seconds of training, "
        "validation and storing until the mean accuracy of the clients on their own validation "
        "images reaches the target."
    )
    return Section(
        "Time to an accuracy", note, ["Way", "Target", "Round", "s", "x straight"], cells, []
    )


def scale_section(rows: Sequence[ScaleResult]) -> Section:
    """Many clients on one machine."""
    columns = [
        "Clients", "A round", "Start s", "Round s", "Of it training s", "Finish s", "Peak GB",
        "On disk MB",
    ]  # fmt: skip
    cells = [
        [
            f"{one.clients:,}",
            str(one.participants),
            f"{one.start:.1f}",
            f"{one.round:.1f}",
            f"{one.train:.1f}",
            f"{one.finish:.1f}",
            f"{one.memory / 1e9:.2f}",
            f"{one.disk / 1e6:.0f}",
        ]
        for one in rows
    ]
    note = (
        "`pfedmma train` on pfedmma-tiny with clients of two training images each; a hundredth of "
        "them in a round. Start: reading and dividing the data, before the first round. Finish: "
        "writing every client's folder."
    )
    return Section("Many clients", note, columns, cells, [])


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
