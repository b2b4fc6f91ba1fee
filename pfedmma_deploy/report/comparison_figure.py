"""Personalization against generalization: one point per method, with its intervals."""

from __future__ import annotations

import io
from typing import Any

# Colours that people with colour-blindness tell apart (Okabe and Ito, 2008), and shapes besides.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def draw(values: dict[str, Any]) -> bytes:
    """PNG of local accuracy (x) against novel accuracy (y), or base where nothing is novel."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in values["rows"] if row["local"] is not None]
    key = "novel" if any(row["novel"] for row in rows) else "base"
    figure = Figure(figsize=(8.5, 5.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, row in enumerate(row for row in rows if row[key] is not None):
        colour = COLOURS[index % len(COLOURS)]
        axes.errorbar(
            row["local"]["mean"],
            row[key]["mean"],
            xerr=row["local"]["interval"],
            yerr=row[key]["interval"],
            fmt=MARKERS[(index // len(COLOURS)) % len(MARKERS)],
            color=colour,
            ecolor=(colour, 0.35),
            markersize=8,
            capsize=2,
            label=row["method"],
        )
    words = {"novel": "classes never seen", "base": "all classes trained on"}
    axes.set_xlabel("Personalization: accuracy on each client's own classes (%)")
    axes.set_ylabel(f"Generalization: accuracy on {words[key]} (%)")
    axes.set_title(f"{values['options']['data']} on {values['options']['backbone']}", loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    buffer = io.BytesIO()
    # No date and no version inside: the same figures give the same file.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
