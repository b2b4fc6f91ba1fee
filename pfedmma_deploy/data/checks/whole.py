"""What can be told from names and paths alone, before any image is looked at."""

from __future__ import annotations

from pfedmma_deploy.data.checks.names import check_names
from pfedmma_deploy.data.checks.pairing import check_pairing
from pfedmma_deploy.data.checks.problems import Problem, find_problem
from pfedmma_deploy.types import Dataset

__all__ = ["check_dataset"]


def check_dataset(dataset: Dataset) -> tuple[Problem, ...]:
    """Problems of the files, folders, labels and class names; quick, so done before each training.

    A data set may carry findings of its own reader in an attribute `problems`.
    """
    problems: list[Problem] = list(getattr(dataset, "problems", ()))
    files = [f"{skipped.path} ({skipped.reason})" for skipped in dataset.skipped]
    problems += find_problem("skipped-files", files)
    problems += check_names(dataset.class_names)
    if all(problem.kind != "unordered-classes" for problem in problems):
        problems += check_pairing(dataset)
    return tuple(problems)
