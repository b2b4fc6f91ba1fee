"""The rules by which a server combines updates: by hand, and what one client can do to each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.methods.aggregation import (
    AGGREGATORS,
    KRUM_NEEDS,
    Aggregator,
    Krum,
    NormClip,
    PerHolder,
    Tensors,
    TrimmedMean,
    Update,
    get_aggregator,
)

RULE = pytest.mark.parametrize("name", list(AGGREGATORS))
ROBUST = ("median", "trimmed-mean", "krum", "norm-clip")
MEDIAN = TrimmedMean(0.5)
# Whole numbers: whatever is added up in float64 is exact.
NUMBERS = st.integers(-1000, 1000).map(float)


def updates_of(values: Sequence[Sequence[float]], examples: int = 4) -> list[Update]:
    """Client c0, c1, ... with these numbers, half of them in each of two tensors."""
    found = []
    for i, row in enumerate(values):
        numbers, half = torch.tensor(row, dtype=torch.float32), len(row) // 2
        shared = {"v": numbers[:half], "w": numbers[half:]}
        found.append(Update(f"c{i}", shared, examples))
    return found


def flat(tensors: Tensors) -> Tensor:
    return torch.cat([tensors["v"], tensors["w"]]).double()


def zeros(size: int) -> Tensors:
    return {"v": torch.zeros(size // 2), "w": torch.zeros(size - size // 2)}


def combine(rule: Aggregator, values: Sequence[Sequence[float]]) -> list[float]:
    found: list[float] = flat(rule.combine(updates_of(values), zeros(len(values[0])))).tolist()
    return found


def test_the_median_by_hand() -> None:
    assert combine(MEDIAN, [[1, 9], [2, -100], [50, 8]]) == [2, 8]
    assert combine(MEDIAN, [[1, 0], [2, 0], [4, 0], [1000, 0]]) == [3, 0]
    assert combine(MEDIAN, [[1, 5], [2, 7]]) == [1.5, 6]
    assert combine(MEDIAN, [[3, 4]]) == [3, 4]


def test_the_trimmed_mean_by_hand() -> None:
    """A quarter of four: one is cut off on each side."""
    values = [[1, -900], [2, 4], [4, 8], [1000, 9]]
    assert combine(TrimmedMean(0.25), values) == [3, 6]
    assert combine(TrimmedMean(0.0), [[1, 0], [2, 3]]) == [1.5, 1.5]


@pytest.mark.parametrize(("clients", "cut"), [(3, 0), (4, 1), (7, 2), (10, 3), (20, 6), (110, 33)])
def test_how_many_the_trimmed_mean_cuts_off(clients: int, cut: int) -> None:
    """0.3 of the clients are at 1000; those that are not cut off pull the mean away from 0."""
    for bad in (cut, cut + 1):
        values = [[1000.0, 0.0]] * bad + [[0.0, 0.0]] * (clients - bad)
        moved = combine(get_aggregator("trimmed-mean"), values)[0]
        assert (moved > 0) == (bad > cut)


def test_krum_by_hand() -> None:
    """Five clients, f = 1: the sum of the squared distances to the two nearest.

    c0: 1 + 4 = 5, c1: 1 + 1 = 2, c2: 1 + 4 = 5, c3: 3^2 + 4^2 = 25, c4: far away.
    """
    values = [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [5.0, 0.0], [900.0, -900.0]]
    assert combine(Krum(), values) == [1, 0]


def test_krum_takes_the_first_of_equal_scores_in_client_order() -> None:
    """Three clients, f = 0, one neighbour: c0 and c1 are each other's nearest."""
    values = [[1.0, 0.0], [2.0, 0.0], [50.0, 0.0]]
    assert combine(Krum(), values) == [1, 0]
    forward = updates_of(values)
    assert flat(Krum().combine(forward[::-1], {})).tolist() == [1, 0]


def test_krum_counts_all_tensors_together() -> None:
    """By `v` alone c0 would win, and c2 would be the farthest."""
    values = [[0.0, 9.0], [1.0, 1.0], [4.0, 0.0]]
    # Squared distances: 0-1: 1 + 64, 0-2: 16 + 81, 1-2: 9 + 1. c1 and c2 tie, c1 is first.
    assert combine(Krum(), values) == [1, 1]


def test_krum_of_fewer_than_three_is_their_mean() -> None:
    assert KRUM_NEEDS == 3
    assert combine(Krum(), [[1, 5], [2, 7]]) == [1.5, 6]
    assert combine(Krum(), [[1, 5]]) == [1, 5]


def test_norm_clip_by_hand() -> None:
    """Differences of length 5, 10 and 50: the last is cut to 10, a fifth of it."""
    server = {"v": torch.tensor([1.0]), "w": torch.tensor([1.0])}
    steps = [(3.0, 4.0), (-6.0, 8.0), (30.0, 40.0)]
    updates = updates_of([[1 + a, 1 + b] for a, b in steps])
    found = flat(NormClip().combine(updates, server)).tolist()
    assert found == pytest.approx([1 + (3 - 6 + 6) / 3, 1 + (4 + 8 + 8) / 3])


def test_norm_clip_weighs_by_images() -> None:
    updates = [
        Update("a", {"w": torch.tensor([4.0])}, 1),
        Update("b", {"w": torch.tensor([-2.0])}, 3),
    ]
    # The lower of the two lengths is the bound: 2.
    assert NormClip().combine(updates, {"w": torch.zeros(1)})["w"].tolist() == [-1.0]


def test_norm_clip_where_most_send_nothing_new() -> None:
    assert combine(NormClip(), [[0, 0], [0, 0], [7, 7]]) == [0, 0]


@RULE
@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=8), st.randoms())
def test_the_order_of_clients_does_not_matter(
    name: str, values: list[tuple[float, ...]], random: object
) -> None:
    updates = updates_of(values)
    shuffled = list(updates)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis gives a random.Random
    rule = get_aggregator(name)
    first, second = (rule.combine(each, zeros(3)) for each in (updates, shuffled))
    assert all(torch.equal(first[n], second[n]) for n in first)


@RULE
@given(st.tuples(NUMBERS, NUMBERS, NUMBERS), st.integers(1, 9))
def test_equal_updates_are_returned(name: str, row: tuple[float, ...], clients: int) -> None:
    found = combine(get_aggregator(name), [row] * clients)
    assert found == pytest.approx(list(row), rel=1e-6)


@RULE
def test_rules_keep_names_shapes_and_types(name: str) -> None:
    shared = {
        "scalar": torch.tensor(1.0),
        "empty": torch.zeros(0),
        "half": torch.zeros(2, 3).half(),
    }
    updates = [Update(str(i), shared, 1) for i in range(5)]
    found = get_aggregator(name).combine(updates, shared)
    assert {n: (v.shape, v.dtype) for n, v in found.items()} == {
        n: (v.shape, v.dtype) for n, v in shared.items()
    }


HONEST = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=4, max_size=7)
ARBITRARY = st.tuples(*[st.floats(-(2.0**127), 2.0**127, width=32)] * 2)


@pytest.mark.parametrize("name", ["median", "trimmed-mean"])
@given(HONEST, ARBITRARY)
def test_one_client_cannot_leave_the_range_of_the_others(
    name: str, honest: list[tuple[float, ...]], arbitrary: tuple[float, ...]
) -> None:
    found = combine(get_aggregator(name), [*honest, arbitrary])
    for value, column in zip(found, zip(*honest, strict=True), strict=True):
        assert min(column) - 1e-3 <= value <= max(column) + 1e-3


@given(HONEST, ARBITRARY)
def test_krum_stays_close_to_an_honest_client(
    honest: list[tuple[float, ...]], arbitrary: tuple[float, ...]
) -> None:
    """No further from one of them than the two of them that are farthest apart."""
    found = combine(Krum(), [*honest, arbitrary])
    widest = max(math.dist(a, b) for a in honest for b in honest)
    assert min(math.dist(found, row) for row in honest) <= widest + 1e-9


@given(HONEST, ARBITRARY)
def test_norm_clip_moves_no_further_than_an_honest_client(
    honest: list[tuple[float, ...]], arbitrary: tuple[float, ...]
) -> None:
    found = combine(NormClip(), [*honest, arbitrary])
    assert math.hypot(*found) <= max(math.hypot(*row) for row in honest) * (1 + 1e-6)


def test_a_mean_bears_nobody() -> None:
    """What the other rules are for."""
    values = [[0.0, 0.0]] * 9 + [[1e6, 0.0]]
    assert combine(get_aggregator("mean"), values)[0] == 1e5
    for name in ROBUST:
        assert combine(get_aggregator(name), values) == [0, 0], name


def test_per_holder_takes_any_rule() -> None:
    """A component that three hold has its median; one that nobody sent stays."""
    server = {"a": torch.zeros(1), "b": torch.ones(1)}
    updates = [Update(str(i), {"a": torch.tensor([float(i**2)])}, 1) for i in range(3)]
    found = PerHolder(MEDIAN).combine(updates, server)
    assert {name: value.tolist() for name, value in found.items()} == {"a": [1.0], "b": [1.0]}


def test_updates_that_differ_are_refused() -> None:
    updates = [Update("a", {"w": torch.zeros(1)}, 1), Update("b", {"v": torch.zeros(1)}, 1)]
    for name in AGGREGATORS:
        with pytest.raises(ValueError, match="client b and a disagree on v"):
            get_aggregator(name).combine(updates, {})
        with pytest.raises(ValueError, match="no client sent an update"):
            get_aggregator(name).combine([], {})


def test_an_unknown_rule_is_refused() -> None:
    expected = (
        r"aggregate must be one of mean, uniform-mean, median, trimmed-mean, krum, norm-clip, "
        r"not 'medain'; did you mean 'median'\?"
    )
    with pytest.raises(UsageError, match=expected):
        get_aggregator("medain")
