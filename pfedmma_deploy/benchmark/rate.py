"""Device-only rates: images per second and batch size, latency, share of the machine's peak."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pfedmma_deploy.benchmark.peak import PEAK_PRECISIONS, matmul
from pfedmma_deploy.benchmark.rows import Measure, Row, latency, timed
from pfedmma_deploy.benchmark.subjects import NotMeasuredError, Subject
from pfedmma_deploy.benchmark.timing import Contestant, ratio, run_rounds
from pfedmma_deploy.progress import Progress

__all__ = ["Setting", "measure_rates"]

LONGEST_CALL = 2.0
"""Seconds. Batches whose one call takes the peer longer than this are left out: a rate is the same
as with the batch before, and a round would take minutes."""


@dataclass(frozen=True)
class Setting:
    """How rates are taken."""

    backbone: str
    device: Literal["cpu", "cuda"]
    threads: int
    rounds: int
    seconds: float
    """Length of a window."""


def measure_rates(
    measure: Measure,
    subjects: Sequence[Subject],
    peer: str,
    batch_sizes: Sequence[int],
    setting: Setting,
    progress: Progress,
) -> Iterator[Row]:
    """Rows of all subjects for every batch size, smallest batch first.

    Args:
        measure: what the rows are called.
        subjects: measured in turns with each other.
        peer: label of the subject that `Row.ratio` refers to.
        batch_sizes: images per call.
        setting: how rates are taken.
        progress: is told of the windows, and of what is left out.
    """
    active = list(subjects)
    slowest = 0.0
    for batch in sorted(batch_sizes):
        if slowest * batch > LONGEST_CALL:
            progress.note(
                f"{setting.backbone}: batch {batch} left out, one call takes about "
                f"{slowest * batch:.0f} s here."
            )
            continue
        peaks = {
            precision: matmul(setting.device, precision, setting.threads)
            for precision in PEAK_PRECISIONS[setting.device]
            if any(subject.precision == precision for subject in active)
        }
        contestants = list(peaks.values())
        for subject in list(active):
            try:
                call = subject.prepare(batch)
            except NotMeasuredError as error:
                active.remove(subject)
                progress.note(f"{subject.label}: not measured: {error}")
                yield Row(
                    measure, setting.backbone, subject.name, subject.precision, reason=str(error)
                )
                continue
            contestants.append(Contestant(subject.label, call, batch))
        windows = run_rounds(
            contestants,
            setting.rounds,
            setting.seconds,
            progress=progress,
            label=f"{setting.backbone}: windows at batch {batch}",
        )
        compared = {subject.label: windows[subject.label] for subject in active}
        for subject in active:
            own = windows[subject.label]
            peak = peaks.get(subject.precision)
            row = Row(
                measure,
                setting.backbone,
                subject.name,
                subject.precision,
                subject.flavour,
                subject.clients,
                batch,
                share_of_peak=None
                if peak is None
                else ratio(own, windows[peak.name]).median * subject.flop,
                latency=latency(own.calls) if batch == 1 else None,
            )
            yield row.with_rates(timed(compared, subject.label, peer))
        slowest = min(windows[peer].calls) / batch
