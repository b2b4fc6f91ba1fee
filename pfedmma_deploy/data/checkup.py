"""Everything there is to check about data before an hour of training, in one call."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from pfedmma_deploy.config import PartitionConfig
from pfedmma_deploy.data.checks import (
    Problem,
    check_balance,
    check_content,
    check_dataset,
    check_order,
    find_problem,
)
from pfedmma_deploy.data.facts import facts_folder, read_facts
from pfedmma_deploy.data.federation import divide, hold_all
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.progress import Progress
from pfedmma_deploy.types import Dataset, Federation

__all__ = ["QUICK_LIMIT", "Checkup", "check_data", "warn_of_content"]

QUICK_LIMIT: Final = 20_000
"""Images that are looked at before a training if they have to be read: a minute or two."""
_LEVELS: Final = ("fatal", "error", "warning")


@dataclass(frozen=True, slots=True)
class Checkup:
    """What was found, the worst first."""

    problems: tuple[Problem, ...]
    images: int
    """How many were looked at."""
    federation: Federation | None
    """The division that was checked; None where it is impossible."""

    @property
    def is_good(self) -> bool:
        """Whether training would run and its result mean what it says; warnings may remain."""
        return all(problem.level == "warning" for problem in self.problems)

    def add(self, problems: tuple[Problem, ...]) -> Checkup:
        """With more findings."""
        return replace(self, problems=_sort((*self.problems, *problems)))


def check_data(
    dataset: Dataset,
    partition: PartitionConfig | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Checkup:
    """Looks at names, paths, the division among clients, and every image.

    Args:
        dataset: what to check.
        partition: who holds which images; None takes the data's client folders as clients, or else
            all images as those of one.
        seed: of the partition.
        progress: told of batches of images.

    Raises:
        UsageError: the options name something that the data do not have.
    """
    problems = [*check_dataset(dataset), *check_order(dataset)]
    federation = None
    try:
        federation, found = _divide(dataset, partition, seed)
        problems += [*found, *check_balance(federation)]
    except DataError as error:
        problems += find_problem("impossible-division", [str(error)])
    facts, broken = read_facts(dataset, dataset.examples, cache=facts_folder(), progress=progress)
    problems += find_problem("skipped-files", [f"{key} ({why})" for key, why in broken.items()])
    dealt = None if partition is None else federation
    problems += check_content(dataset, facts, dealt)
    return Checkup(_sort(tuple(problems)), len(facts), federation)


def warn_of_content(federation: Federation, *, progress: Progress | None = None) -> Federation:
    """With what the pixels of its images show added to its warnings, as before each training.

    Copies, leakage, blank and tiny images. Where more than `QUICK_LIMIT` images would have to be
    read, only those count that `check_data` has looked at before.
    """
    members = [e for c in federation.clients for e in (*c.train, *c.val, *c.test)]
    examples = [*members, *federation.base_test, *federation.novel_test]
    facts, _ = read_facts(
        federation.dataset, examples, cache=facts_folder(), limit=QUICK_LIMIT, progress=progress
    )
    found = check_content(federation.dataset, facts, federation)
    return replace(federation, warnings=(*federation.warnings, *map(str, found)))


def _divide(
    dataset: Dataset, partition: PartitionConfig | None, seed: int
) -> tuple[Federation, tuple[Problem, ...]]:
    if partition is not None:
        return divide(dataset, partition, seed)
    if dataset.examples and all(example.client for example in dataset.examples):
        return divide(dataset, PartitionConfig(scheme="folders", classes="all", num_shots=0))
    return hold_all(dataset)


def _sort(problems: tuple[Problem, ...]) -> tuple[Problem, ...]:
    return tuple(sorted(problems, key=lambda problem: _LEVELS.index(problem.level)))
