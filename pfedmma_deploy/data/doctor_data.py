"""Everything there is to check about data before an hour of training, pixels included.

Only the pixels show copies, leakage from training into testing, blank and tiny images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pfedmma_deploy.config import PartitionConfig
from pfedmma_deploy.data.dataset_checks import (
    check_balance,
    check_dataset,
    check_order,
    find_problem,
)
from pfedmma_deploy.data.federation import hold_all, partition_dataset
from pfedmma_deploy.data.image_stats import ImageStats, read_stats
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.progress import Progress
from pfedmma_deploy.types import Dataset, Example, Federation, Problem

QUICK_LIMIT: Final = 20_000
"""Images that are looked at before a training if they have to be read: a minute or two."""
TINY: Final = 16
"""Pixels; CIFAR's images have 32."""
BLANK: Final = 1.0
"""Standard deviation of the pixel values (0 to 255) below which an image shows nothing."""
_LEVELS: Final = ("fatal", "error", "warning")


@dataclass(frozen=True, slots=True)
class DataReport:
    """What was found, the worst first."""

    problems: tuple[Problem, ...]
    images: int
    """How many were looked at."""
    federation: Federation | None
    """The partition that was checked; None where it is impossible."""

    @property
    def is_good(self) -> bool:
        """Whether training would run and its result mean what it says; warnings may remain."""
        return all(problem.level == "warning" for problem in self.problems)

    def add(self, problems: Iterable[Problem]) -> DataReport:
        """With more findings."""
        both = sorted((*self.problems, *problems), key=lambda each: _LEVELS.index(each.level))
        return replace(self, problems=tuple(both))


def check_data(
    dataset: Dataset,
    partition: PartitionConfig | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> DataReport:
    """Looks at names, paths, the partition among clients, and every image.

    Args:
        dataset: what to check.
        partition: who holds which images; None takes the data's client folders as clients, or else
            all images as those of one.
        seed: of the partition.
        progress: told of images.

    Raises:
        UsageError: the options name something that the data do not have.
    """
    problems = [*check_dataset(dataset), *check_order(dataset)]
    federation = None
    chosen = partition
    if chosen is None and dataset.examples and all(each.client for each in dataset.examples):
        chosen = PartitionConfig(scheme="folders", classes="all", num_shots=0)
    # A partition that the data do not allow is one finding beside the others, not the only one.
    try:
        federation, found = (
            partition_dataset(dataset, chosen, seed) if chosen else hold_all(dataset)
        )
        problems += [*found, *check_balance(federation)]
    except DataError as error:
        problems += find_problem("impossible-division", [str(error)])
    stats, broken = read_stats(dataset, dataset.examples, progress=progress)
    problems += find_problem("skipped-files", [f"{key} ({why})" for key, why in broken.items()])
    # Without options the data's own clients and parts count, and none was set aside by a seed.
    problems += check_content(dataset, stats, None if partition is None else federation)
    return DataReport((), len(stats), federation).add(problems)


def warn_of_content(federation: Federation, *, progress: Progress | None = None) -> Federation:
    """With what the pixels of its images show added to its warnings, as before each training.

    Copies, leakage, blank and tiny images. Where more than `QUICK_LIMIT` images would have to be
    read, only those count that `check_data` has looked at before.
    """
    examples = [example for example, _ in _held(federation)]
    stats, _ = read_stats(federation.dataset, examples, limit=QUICK_LIMIT, progress=progress)
    found = check_content(federation.dataset, stats, federation)
    return replace(federation, warnings=(*federation.warnings, *map(str, found)))


def check_content(
    dataset: Dataset, stats: Mapping[str, ImageStats], federation: Federation | None = None
) -> tuple[Problem, ...]:
    """Problems of the images in `stats`; those of copies with the clients and parts of a partition.

    Args:
        dataset: where the images are from.
        stats: by key, as `image_stats.read_stats` gives them.
        federation: whose clients and splits count; None takes the data set's own.
    """
    blank, tiny = [], []
    for example in dataset.examples:
        found = stats.get(example.key)
        if found is None:
            continue
        if found.spread < BLANK:
            blank.append(example.key)
        if min(found.width, found.height) < TINY:
            tiny.append(f"{example.key} ({found.width} x {found.height})")
    examples: Iterable[Example] = dataset.examples
    if federation is not None:
        examples = (replace(example, client=client) for example, client in _held(federation))
    groups: dict[str, list[Example]] = {}
    for example in examples:
        found = stats.get(example.key)
        # All blank images of a size are alike; what is wrong with them is that they are blank.
        if found is not None and found.spread >= BLANK:
            groups.setdefault(found.digest, []).append(example)
    copies = [group for group in groups.values() if len(group) > 1]
    return (
        *_find_copies(copies, dataset.class_names),
        *find_problem("blank-images", blank),
        *find_problem("tiny-images", tiny),
    )


def _held(federation: Federation) -> Iterator[tuple[Example, str | None]]:
    """Every image that takes part, once, and who holds it."""
    seen: set[str] = set()
    for client in federation.clients:
        for example in (*client.train, *client.val, *client.test):
            seen.add(example.key)
            yield example, client.id
    for example in (*federation.base_test, *federation.novel_test):
        if example.key not in seen:
            seen.add(example.key)
            yield example, None


def _find_copies(
    groups: Sequence[Sequence[Example]], class_names: Sequence[str]
) -> Iterator[Problem]:
    """What is wrong with groups of images that have the same pixels; one pair of each is named."""
    leaked: list[str] = []
    num_leaked = 0
    in_two_classes: list[str] = []
    held_by_several: list[str] = []
    duplicates: list[str] = []
    for group in groups:
        tests = [example for example in group if example.split == "test"]
        rest = [example for example in group if example.split != "test"]
        if tests and rest:
            leaked.append(f"{tests[0].key} (test) is {rest[0].key} ({rest[0].split})")
            num_leaked += len(tests)
        # The first of each class and of each client stands for the others.
        by_label: dict[int, str] = {}
        by_client: dict[str, str] = {}
        first: dict[tuple[int, bool, str | None], Example] = {}
        for example in group:
            by_label.setdefault(example.label, f"{example.key} ({class_names[example.label]})")
            if example.client is not None:
                by_client.setdefault(example.client, f"{example.key} (client {example.client})")
            # Copies that no other finding tells of: alike in class, side and client.
            place = example.label, example.split == "test", example.client
            if place in first:
                duplicates.append(f"{example.key} is {first[place].key}")
            first.setdefault(place, example)
        if len(by_label) > 1:
            in_two_classes.append(" and ".join(by_label[label] for label in sorted(by_label)))
        if len(by_client) > 1:
            held_by_several.append(" and ".join(by_client[name] for name in sorted(by_client)))
    yield from find_problem("leaked-images", leaked, num_leaked)
    yield from find_problem("image-in-two-classes", in_two_classes)
    yield from find_problem("held-by-several", held_by_several)
    yield from find_problem("duplicate-images", duplicates)
