"""What `pfedmma bench` measures: options, checked before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.export.export_config import (
    ExportConfig,
    Flavour,
    Precision,
    Storage,
    default_flavour,
)
from pfedmma_deploy.system import available_cores

MEASURES = ("rate", "end-to-end", "load", "clients")


@dataclass(frozen=True)
class InferenceOptions:
    """What is measured; the defaults suit a laptop. Raises `UsageError` on an impossible value."""

    backbones: tuple[str, ...] = ("pfedmma-tiny",)
    """open_clip names. Weights are random: they do not change speed."""
    model: Path | None = None
    """A bundle to measure instead of backbones."""
    clients: int = 100
    """Random clients in the file; every batch mixes them."""
    scaling: tuple[int, ...] = (1, 100, 1000)
    """Numbers of clients in one file that `clients` compares."""
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    flavour: Flavour | None = None
    """None: the default of each precision."""
    weights: Storage = "fp32"
    bottleneck_dim: int = 32
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = field(default_factory=available_cores)
    """On the CPU, of every library that is measured."""
    seconds: float = 0.5
    """Length of a window."""
    rounds: int = 5
    """Windows of every subject."""
    measures: tuple[str, ...] = MEASURES

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("bottleneck_dim", "threads", "rounds")}
        counts |= {"clients": min((self.clients, *self.scaling))}
        counts |= {"batch_sizes": min(self.batch_sizes, default=1)}
        for name, smallest in counts.items():
            if smallest < 1:
                raise UsageError(f"{name} must be 1 or more, not {smallest}")
        if not self.seconds > 0:
            raise UsageError(f"seconds per window must be above 0, not {self.seconds}")
        lists: dict[str, tuple[Sequence[object], Sequence[object]]] = {
            "backbone": (self.backbones, self.backbones),
            "batch size": (self.batch_sizes, self.batch_sizes),
            "--precision": (self.precisions, get_args(Precision)),
            "measurement": (self.measures, MEASURES),
        }
        for name, (chosen, known) in lists.items():
            for value in chosen:
                if value not in known:
                    expected = ", ".join(map(str, known))
                    raise UsageError(f"{name} must be among {expected}, not {value!r}")
            if not chosen or len(set(chosen)) < len(chosen):
                raise UsageError(f"name at least one {name}, each once: {list(chosen)}")

    @property
    def forms(self) -> list[ExportConfig]:
        """Operators, arithmetic and storage of each precision."""
        forms = []
        for precision in self.precisions:
            flavour = self.flavour or default_flavour(precision)
            forms.append(ExportConfig(flavour, precision, self.weights))
        return forms

    def to_command(self) -> str:
        """The options of `pfedmma bench` that repeat it, without what the environment says."""
        source = "--model a bundle" if self.model else f"--backbone {','.join(self.backbones)}"
        return (
            f"{source} --measure {','.join(self.measures)} "
            f"--batch-sizes {','.join(map(str, self.batch_sizes))} "
            f"--clients {self.clients} --scaling {','.join(map(str, self.scaling))} "
            f"--precision {','.join(self.precisions)} --weights {self.weights} "
            f"--device {self.device} --seconds {self.seconds:g} --rounds {self.rounds}"
        )
