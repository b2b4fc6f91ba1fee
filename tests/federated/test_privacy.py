"""Differential privacy of what is shared: the clipped mean, the noise on it, and its cost."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from pfedmma_deploy.config import TrainConfig
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.federated.privacy import Privacy, epsilon
from pfedmma_deploy.federated.rounds import noise_generator, privacy_of
from pfedmma_deploy.federated.train import train
from pfedmma_deploy.methods.aggregation import Tensors, Update
from pfedmma_deploy.progress import Silent
from pfedmma_deploy.store.checkpoint import Checkpoint
from tests.federated.test_resume import Stop, contents

Step = tuple[float, float]


def noiseless(clip: float = 5.0, expected: int = 2) -> Privacy:
    return Privacy(clip, 0.0, clients=4, expected=expected)


def any_noise() -> np.random.Generator:
    return np.random.default_rng(0)


def zeros() -> Tensors:
    """Two tensors of one number each, in float64: what is rounded is not what is tested."""
    return {"v": torch.zeros(1, dtype=torch.float64), "w": torch.zeros(1, dtype=torch.float64)}


def updates_of(steps: Sequence[Step]) -> list[Update]:
    """Clients that move a server of zeros by these steps; their numbers of images differ."""
    found = []
    for i, step in enumerate(steps):
        numbers = torch.tensor(step, dtype=torch.float64)
        found.append(Update(f"c{i}", {"v": numbers[:1], "w": numbers[1:]}, 10**i))
    return found


def moved(privacy: Privacy, steps: Sequence[Step]) -> list[float]:
    found = privacy.combine(updates_of(steps), zeros(), any_noise())
    return [float(found["v"]), float(found["w"])]


def test_a_clipped_mean_by_hand() -> None:
    """C = 5 over both tensors together: (3, 4) stays, (30, 40) becomes (3, 4). All weigh alike."""
    assert moved(noiseless(), [(3, 4), (30, 40)]) == [3, 4]
    server = {"v": torch.tensor([1.0]), "w": torch.tensor([2.0])}
    update = Update("a", {"v": torch.tensor([31.0]), "w": torch.tensor([42.0])}, 9)
    found = noiseless().combine([update], server, any_noise())
    # Divided by m = 2 although one client answered.
    assert (float(found["v"]), float(found["w"])) == (1 + 1.5, 2 + 2)


def test_a_client_that_holds_some_of_the_tensors() -> None:
    """What it does not hold, it does not change."""
    updates = [
        Update("a", {"w": torch.tensor([-4.0])}, 1),
        Update("b", {"v": torch.tensor([5.0]), "w": torch.tensor([3.0])}, 1),
    ]
    server = {"v": torch.ones(1), "w": torch.zeros(1)}
    found = noiseless().combine(updates, server, any_noise())
    assert (float(found["v"]), float(found["w"])) == (3, -0.5)


STEP = st.tuples(*[st.floats(-1e6, 1e6)] * 2)
STEPS = st.lists(STEP, min_size=1, max_size=5)


@given(STEPS, STEP, st.floats(0.01, 100), st.integers(1, 6))
def test_one_client_moves_the_mean_by_so_much(
    others: list[Step], one: Step, clip: float, expected: int
) -> None:
    """One more: C / m. Another in the place of one: 2 C / m."""
    privacy = noiseless(clip, expected)
    without, added = moved(privacy, others), moved(privacy, [*others, one])
    assert math.dist(without, added) <= clip / expected * (1 + 1e-9)
    replaced = moved(privacy, [one, *others[1:]])
    assert math.dist(without, replaced) <= 2 * clip / expected * (1 + 1e-9)


def noised(seed: int = 0, size: int = 20_000, push: float = 0.0) -> Tensor:
    """The server's next state from zeros; two clients of C = 0.5, S = 2, m = 4 push alike."""
    server = {"w": torch.zeros(size, dtype=torch.float64)}
    sent = torch.full((size,), push, dtype=torch.float64)
    updates = [Update(name, {"w": sent}, 1) for name in ("a", "b")]
    privacy = Privacy(clip=0.5, noise=2.0, clients=8, expected=4)
    return privacy.combine(updates, server, np.random.default_rng(seed))["w"]


def test_the_noise_is_normal() -> None:
    """Standard deviation S C / m = 0.25; Kolmogorov and Smirnov's distance at the level 1 %."""
    values = noised().sort().values / 0.25
    count = len(values)
    assert abs(float(values.mean())) < 4 / math.sqrt(count)
    assert abs(float(values.std()) - 1) < 4 / math.sqrt(2 * count)
    normal = torch.special.ndtr(values)
    ranks = torch.arange(count + 1, dtype=torch.float64) / count
    distance = max(float((ranks[1:] - normal).max()), float((normal - ranks[:-1]).max()))
    assert distance < 1.63 / math.sqrt(count)


def test_the_noise_does_not_depend_on_the_data() -> None:
    """C = 0.5 over four equal numbers is 0.25 each; two clients, divided by m = 4."""
    difference = noised(size=4, push=3.0) - noised(size=4)
    torch.testing.assert_close(difference, torch.full((4,), 0.125, dtype=torch.float64))


def test_noise_is_drawn_for_every_number_and_every_round() -> None:
    server = {"v": torch.zeros(3), "w": torch.zeros(3)}
    updates = [Update("a", server, 1)]
    privacy = Privacy(clip=1.0, noise=1.0, clients=1, expected=1)
    first, again, later, other = (
        privacy.combine(updates, server, noise_generator(seed, round))
        for seed, round in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert all(torch.equal(first[name], again[name]) for name in server)
    numbers = [*first.values(), *later.values(), *other.values()]
    assert len(set(torch.cat(numbers).tolist())) == 18
    backwards = dict(reversed(server.items()))
    same = privacy.combine([Update("a", backwards, 1)], backwards, noise_generator(0, 0))
    assert all(torch.equal(first[name], same[name]) for name in server)


def test_the_noise_has_a_stream_of_its_own() -> None:
    """No draw of the selection, of lost answers or of a client's training is the noise's."""
    seeds: list[list[int]] = [[3, 5], [3, 5, 0, 1], *([3, 5, client + 1] for client in range(50))]
    first = noise_generator(3, 5).random(4).tolist()
    for seed in seeds:
        assert np.random.default_rng(seed).random(4).tolist() != first


def by_formula(rounds: int, noise: float, delta: float) -> float:
    """T Gaussian mechanisms: Renyi divergence T alpha / (2 S^2) of every order alpha > 1.

    To epsilon by proposition 12 of Canonne, Kamath and Steinke 2020, arXiv 2004.00010, the best of
    many orders.
    """
    found = math.inf
    for alpha in np.linspace(1.01, 200, 100_000).tolist():
        divergence = rounds * alpha / (2 * noise**2)
        cost = math.log1p(-1 / alpha) - math.log(delta * alpha) / (alpha - 1)
        found = min(found, divergence + cost)
    return found


@pytest.mark.parametrize(("rounds", "noise"), [(1, 1.0), (20, 5.0), (100, 8.0)])
def test_epsilon_where_all_clients_take_part(rounds: int, noise: float) -> None:
    """The accountant tries fewer orders, and is at most a hundredth above the formula."""
    expected = by_formula(rounds, noise, 1e-5)
    assert expected - 1e-9 <= epsilon(rounds, 1.0, noise) <= 1.01 * expected
    # The exact delta of the same mechanism (Balle and Wang 2018, theorem 8) keeps what is promised.
    mu, found = math.sqrt(rounds) / noise, epsilon(rounds, 1.0, noise)
    below, above = mu / 2 - found / mu, -mu / 2 - found / mu
    tails = [math.erfc(-x / math.sqrt(2)) / 2 for x in (below, above)]
    assert tails[0] - math.exp(found) * tails[1] <= 1e-5


def test_epsilon_beside_a_published_value() -> None:
    """Abadi et al. 2016, arXiv 1607.00133, section 3.2: q = 0.01, sigma = 4, 10,000 steps, 1.26.

    Accounting has become a little tighter since.
    """
    assert 1.0 < epsilon(10_000, 0.01, 4.0, 1e-5) <= 1.26


def test_what_makes_epsilon_smaller() -> None:
    noise = [epsilon(20, 0.5, noise) for noise in (0.5, 1.0, 2.0, 4.0)]
    assert noise == sorted(noise, reverse=True)
    rounds = [epsilon(rounds, 0.5, 1.0) for rounds in (1, 10, 100)]
    sampling = [epsilon(20, sampling, 1.0) for sampling in (0.1, 0.5, 1.0)]
    delta = [epsilon(20, 0.5, 1.0, delta) for delta in (1e-3, 1e-5, 1e-7)]
    for found in (rounds, sampling, delta):
        assert found == sorted(found)


def test_the_share_is_that_of_the_clients_that_a_round_selects(config: TrainConfig) -> None:
    """A quarter of ten clients are three, not two and a half."""
    options = replace(config, clients_per_round=0.25, dp_clip=0.1, dp_noise=1.0)
    privacy = privacy_of(options, 10)
    assert privacy == Privacy(0.1, 1.0, clients=10, expected=3)
    assert privacy.epsilon(4) == epsilon(4, 0.3, 1.0)
    assert privacy_of(config, 10) is None


def test_without_the_accountant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    expected = (
        r"What differential privacy costs is computed by dp-accounting, which is not installed: "
        r"pip install 'pfedmma-deploy\[fleet\]'"
    )
    with pytest.raises(UsageError, match=expected):
        epsilon(1, 1.0, 1.0)


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)


def private(config: TrainConfig) -> TrainConfig:
    return replace(config, dp_clip=0.5, dp_noise=2.0)


def test_a_run_says_what_it_costs(config: TrainConfig, tmp_path: Path) -> None:
    notes = Notes()
    result = train(private(config), tmp_path / "run", progress=notes)
    cost = epsilon(2, 1.0, 2.0)
    assert (
        f"Differential privacy: epsilon {cost:.2f} at delta 1e-05 for the whole run (rounds: 2,"
        " clients in a round: 2 of 2)." in notes.lines
    )
    assert result.privacy == result.run.manifest["privacy"]
    figures = {"clip": 0.5, "noise": 2.0, "clients": 2, "expected": 2, "delta": 1e-5}
    assert result.privacy == {**figures, "rounds": 2, "epsilon": cost}
    assert [line["epsilon"] for line in result.run.rounds] == [epsilon(1, 1.0, 2.0), cost]
    without = train(config, tmp_path / "without")
    assert without.privacy is None
    assert "privacy" not in without.run.manifest
    assert "epsilon" not in without.run.rounds[0]


def test_a_resumed_run_has_the_same_noise(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = private(config)
    train(config, tmp_path / "whole")
    commit = Checkpoint.commit

    def commit_and_stop(self: Checkpoint, round: int, *rest: Any) -> None:
        commit(self, round, *rest)
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "commit", commit_and_stop)
        with pytest.raises(Stop):
            train(config, tmp_path / "cut")
    train(config, tmp_path / "cut", resume=True)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"aggregate": "krum"},
            "--dp-clip and --dp-noise add noise to a mean of the clients, which --aggregate krum"
            " does not take: leave it out, or them.",
        ),
        (
            {"method": "pfedmoap", "parameters": {}},
            "--dp-clip and --dp-noise add noise to a mean of the clients, which --method pfedmoap"
            " does not take: leave it out, or them.",
        ),
        (
            {"method": "local"},
            "local shares nothing, so there is nothing to add noise to: leave out --dp-clip and"
            " --dp-noise, or choose another --method.",
        ),
    ],
)
def test_where_there_is_no_mean_to_add_noise_to(
    changes: dict[str, Any], expected: str, config: TrainConfig, tmp_path: Path
) -> None:
    if changes.get("method") == "local":
        changes = {**changes, "parameters": {"bottleneck_dim": 4}}
    with pytest.raises(UsageError) as raised:
        train(replace(private(config), **changes), tmp_path / "run")
    assert str(raised.value) == expected
    assert not (tmp_path / "run").exists()


def test_krum_of_two_says_that_it_is_a_mean(config: TrainConfig, tmp_path: Path) -> None:
    notes = Notes()
    train(replace(config, aggregate="krum", rounds=1), tmp_path / "run", progress=notes)
    assert (
        "warning: krum needs 3 clients in a round to tell who is wrong; of 2 the plain mean is"
        " taken." in notes.lines
    )
