"""What `pfedmma bench` measures: options, checked before anything heavy is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.export.form import Flavour, Form, Precision, Storage, default_flavour
from pfedmma_deploy.system import available_cores

__all__ = ["MEASURES", "InferenceOptions"]

MEASURES = ("rate", "end-to-end", "load", "clients")


@dataclass(frozen=True)
class InferenceOptions:
    """What is measured; every field has a default that suits a laptop.

    Raises `UsageError` on a value that there is not.
    """

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
    compiled: bool = True
    """Whether torch.compile is among the peers."""

    def __post_init__(self) -> None:
        for name, numbers in (
            ("clients", (self.clients, *self.scaling)),
            ("batch_sizes", self.batch_sizes),
            ("bottleneck_dim", (self.bottleneck_dim,)),
            ("threads", (self.threads,)),
            ("rounds", (self.rounds,)),
        ):
            if any(number < 1 for number in numbers):
                raise UsageError(f"{name} must be 1 or more, not {min(numbers)}")
        if not self.seconds > 0:
            raise UsageError(f"seconds per window must be above 0, not {self.seconds}")
        for name, values, known in (
            ("device", (self.device,), ("cpu", "cuda")),
            ("precision", self.precisions, get_args(Precision)),
            ("measurement", self.measures, MEASURES),
        ):
            for value in values:
                if value not in known:
                    raise UsageError(f"{name} must be among {', '.join(known)}, not {value!r}")
        for name, chosen in (
            ("backbone", self.backbones),
            ("batch size", self.batch_sizes),
            ("precision", self.precisions),
            ("measurement", self.measures),
        ):
            if not chosen or len(set(chosen)) < len(chosen):
                raise UsageError(f"name at least one {name}, each once: {list(chosen)}")

    @property
    def forms(self) -> list[Form]:
        """One form per precision."""
        return [
            Form(self.flavour or default_flavour(precision), precision, self.weights)
            for precision in self.precisions
        ]
