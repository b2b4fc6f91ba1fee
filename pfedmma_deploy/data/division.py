"""The options of a division among clients, in one place and in range."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, get_args

from pfedmma_deploy.config import Classes, Partition
from pfedmma_deploy.errors import UsageError

__all__ = ["Division"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """What decides a division; `federation.build_federation` explains each.

    Raises `UsageError` on a value out of range.
    """

    clients: int
    classes: Classes = "base-novel"
    partition: Partition = "disjoint"
    dirichlet_beta: float = 0.3
    num_shots: int = 16
    seed: int = 0
    unseen_domain: str | None = None
    superclasses: str | None = None

    def __post_init__(self) -> None:
        beta, classes, partitions = self.dirichlet_beta, get_args(Classes), get_args(Partition)
        checks = (
            ("classes", self.classes, self.classes in classes, " or ".join(classes)),
            ("partition", self.partition, self.partition in partitions, ", ".join(partitions)),
            ("clients", self.clients, self.clients >= 1, "1 or more"),
            ("num_shots", self.num_shots, self.num_shots >= 0, "0 (all images) or more"),
            ("seed", self.seed, self.seed >= 0, "0 or more"),
            # Far below this the proportions underflow.
            ("dirichlet_beta", beta, 1e-3 <= beta <= 1e6, "between 0.001 and 1000000"),
        )
        for name, value, good, expected in checks:
            if not good:
                raise UsageError(f"{name} must be {expected}, not {value!r}")
        if self.unseen_domain is not None and self.partition != "leave-one-domain-out":
            raise UsageError(
                f"--unseen-domain belongs to --partition leave-one-domain-out, not to"
                f" '{self.partition}': leave it out, or change the partition"
            )
        if self.superclasses is not None and self.partition != "pachinko":
            raise UsageError(
                f"--superclasses belongs to --partition pachinko, not to '{self.partition}': leave"
                " it out, or change the partition"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name; what is not set is left out."""
        return {name: v for name, v in dataclasses.asdict(self).items() if v is not None}
