"""What is wrong with a data set or its division among clients, said before training starts.

`kinds` has every kind of problem and its advice; `names`, `pairing`, `divisions` and `content` look
for them in class names, paths, clients and pixels.
"""

from __future__ import annotations

from pfedmma_deploy.data.checks.content import check_content
from pfedmma_deploy.data.checks.divisions import check_balance, check_federation
from pfedmma_deploy.data.checks.kinds import KINDS, Level
from pfedmma_deploy.data.checks.names import check_order, class_key
from pfedmma_deploy.data.checks.problems import Problem, find_problem, require_usable
from pfedmma_deploy.data.checks.whole import check_dataset

__all__ = [
    "KINDS",
    "Level",
    "Problem",
    "check_balance",
    "check_content",
    "check_dataset",
    "check_federation",
    "check_order",
    "class_key",
    "find_problem",
    "require_usable",
]
