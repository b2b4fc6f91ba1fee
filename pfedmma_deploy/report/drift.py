"""Recorded answers as a picture: the score of being known, answer by answer, with its reference."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np

from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.runtime.manifest import ClientInfo, Manifest
from pfedmma_deploy.runtime.record import Entry

MOST_CLIENTS: Final = 12
"""Panels; of more clients, those with the most answers."""
WINDOW: Final = 25
"""Answers of the moving mean."""


def known_by_client(entries: Iterable[Entry], manifest: Manifest) -> dict[ClientInfo, list[float]]:
    """Scores of being known in the order of the record, of calibrated clients that have answered.

    Answers to typed classes are left out. At most `MOST_CLIENTS`, in the bundle's order.
    """
    calibrated = {info.id: info for info in manifest.clients if info.calibration is not None}
    found: dict[str, list[float]] = {}
    for entry in entries:
        if entry["client"] in calibrated and entry["terms"]["classes"] is None:
            found.setdefault(entry["client"], []).append(entry["known"])
    most = sorted(found, key=lambda name: -len(found[name]))[:MOST_CLIENTS]
    return {info: found[name] for name, info in calibrated.items() if name in most}


def draw_drift(entries: Iterable[Entry], manifest: Manifest, path: Path) -> None:
    """Write a picture, in the format of the ending of `path`: one panel a client.

    Points are answers, the line is their moving mean, the band is where 95 % of the client's own
    images lie (two deviations), the dashed line its threshold.

    Raises:
        UsageError: no calibrated client has answered, or the picture cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    clients = known_by_client(entries, manifest)
    if not clients:
        raise UsageError("No calibrated client has answered: there is nothing to draw.")
    figure = Figure(figsize=(8, 2.2 * len(clients)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(clients), 1, squeeze=False)[:, 0]
    for panel, (info, scores) in zip(panels, clients.items(), strict=True):
        reference = info.calibration
        assert reference is not None
        numbers = np.arange(1, len(scores) + 1)
        low = reference.known_mean - 2 * reference.known_deviation
        high = reference.known_mean + 2 * reference.known_deviation
        panel.axhspan(low, high, color="tab:green", alpha=0.15, label="own images")
        threshold = reference.threshold()
        if threshold is not None:
            panel.axhline(threshold, color="tab:red", linestyle="--", label="threshold")
        panel.plot(numbers, scores, ".", color="tab:gray", markersize=3, label="answers")
        panel.plot(numbers, moving_mean(scores), color="tab:blue", label=f"mean of {WINDOW}")
        panel.set_ylabel("known")
        panel.set_title(f"client {info.id}", loc="left", fontsize=10)
    panels[0].legend(fontsize=8, ncols=4, loc="lower left")
    panels[-1].set_xlabel("answer")
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"The picture {path} cannot be written ({error}): name a .png, .svg or .pdf file in a "
            "folder that there is."
        ) from error


def moving_mean(values: list[float]) -> list[float]:
    """Of each value and up to `WINDOW` - 1 before it."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - WINDOW, 0)
    found: list[float] = ((sums[ends] - sums[starts]) / (ends - starts)).tolist()
    return found
