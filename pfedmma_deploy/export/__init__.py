"""From a run to a verified ONNX bundle.

run, merge            the clients of a finished run, as a bundle or as open_clip weights
bundle                a backbone and its clients' adapters become a bundle
bundle_clients        clients join and leave a finished bundle
banks, graph, models  the towers with all clients in them, exported from torch
fusion, precision     other operators, other arithmetic
parity, quality       is the exported model the trained one, and is it still as good
describe, publish     what the bundle says of itself; how it gets its name

`from pfedmma_deploy import export` gives this package, which can be called: see the function
`export` below.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from pfedmma_deploy.errors import UsageError

if TYPE_CHECKING:
    from pfedmma_deploy.export.bundle import ExportReport
    from pfedmma_deploy.export.export_config import Flavour, Precision, Storage
    from pfedmma_deploy.progress import Progress
    from pfedmma_deploy.store.run import Run

EXPORTS = Path("exports")
"""Where bundles are written, below the current folder."""


def export(
    run: Run | str | Path | None = None,
    out: str | Path | None = None,
    *,
    client: str | Sequence[str] | None = None,
    classifier: bool = False,
    flavour: Flavour | None = None,
    precision: Precision = "fp32",
    weights: Storage = "fp32",
    max_accuracy_drop: float = 0.5,
    format: Literal["onnx", "open_clip"] = "onnx",
    strength: float | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Write an ONNX bundle from a run, as `pfedmma export` does.

    It is compared with torch on real images before it gets its name.

    Args:
        run: a finished run or its folder; None takes the newest in `runs`.
        out: bundle folder; None takes `exports/RUN`.
        client: one id or several; None takes all clients.
        classifier: add `classifier.onnx`: pixels in, class scores out.
        flavour: `portable` (standard operators) or `ort` (ONNX Runtime's fused ones); None takes
            portable, and ort with fp16.
        precision: arithmetic: `fp32`, `fp16` for GPUs, `int8` for CPUs.
        weights: storage of the weights: `fp32` or `fp16`.
        max_accuracy_drop: percentage points that reduced precision may lose.
        format: `open_clip` writes stock weights, for methods that merge.
        strength: with open_clip: how much counts, 0 to 1.5; None takes the client's own.
        progress: draws progress; None is silent.

    Returns:
        Folder, clients, files with their bytes, and how far the bundle is from torch.

    Raises:
        UsageError: an unknown client, or options that exclude each other.
        ExportError: the method's clients cannot be exported so, or the check failed.

    Example:
        >>> from pfedmma_deploy import export
        >>> report = export("runs/photos", client="1")
        >>> report.bundle.as_posix(), report.clients
        ('exports/photos-1', ('zero-shot', '1'))
        >>> report.parity.max_abs_error < 1e-5
        True
    """
    from pfedmma_deploy.export.export_config import ExportConfig, default_flavour
    from pfedmma_deploy.store.run import find_run

    ids = [client] if isinstance(client, str) else client
    if ids is not None and not ids:
        raise UsageError("client names no client: give ids such as ['3', '4'], or leave it out")
    config = ExportConfig(
        flavour or default_flavour(precision), precision, weights, max_accuracy_drop
    )
    found = find_run(run)
    name = "-".join([found.folder.resolve().name, *(ids or ())])
    if format == "open_clip":
        if classifier or flavour or (precision, weights) != ("fp32", "fp32"):
            raise UsageError(
                "--format open_clip writes fp32 weights, not a graph: leave out --classifier, "
                "--flavour, --precision and --weights"
            )
        from pfedmma_deploy.export.merge import export_open_clip

        folder = EXPORTS / f"{name}-open_clip" if out is None else Path(out)
        return export_open_clip(found, folder, clients=ids, strength=strength, progress=progress)
    if strength is not None:
        raise UsageError(
            "--strength is for --format open_clip; a bundle answers at every strength: leave it "
            f"out, and ask with `pfedmma predict --strength {strength:g}`"
        )
    from pfedmma_deploy.export.run import export_run

    folder = EXPORTS / name if out is None else Path(out)
    return export_run(
        found, folder, clients=ids, classifier=classifier, config=config, progress=progress
    )


class _Callable(ModuleType):
    """A function called `export` and a package called `export` cannot both be attributes of
    `pfedmma_deploy`: whichever was imported last would win. This package is the function too.
    """

    __call__ = staticmethod(export)


sys.modules[__name__].__class__ = _Callable
