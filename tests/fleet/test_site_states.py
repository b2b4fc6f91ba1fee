"""Which of its states a site goes on from, where the one that counts is lost."""

from __future__ import annotations

from pathlib import Path

import torch

from pfedmma_deploy.fleet.states import SiteStates
from pfedmma_deploy.store.checkpoint import ClientState


def own(states: SiteStates) -> list[float] | None:
    """The numbers of the state that counts."""
    found = states.load_client("ward-a")
    return None if found is None else found.own["w"].tolist()


def train(states: SiteStates, counted: int | None, round: int) -> None:
    """A round whose state is its number."""
    states.count(counted)
    states.stage_client("ward-a", round, ClientState({"w": torch.tensor([float(round)])}))


def test_a_state_that_counts_is_taken_and_a_late_one_is_not(tmp_path: Path) -> None:
    states = SiteStates(tmp_path)
    train(states, None, 0)
    train(states, 0, 1)
    assert states.count(0) is None
    assert own(states) == [0]
    assert states.count(None) is None
    assert own(states) is None


def test_where_all_is_lost_the_initial_state_takes_its_place(tmp_path: Path) -> None:
    states = SiteStates(tmp_path)
    words = "the state after round 8 is lost, the initial state takes its place"
    assert states.count(7) == words
    assert own(states) is None


def test_where_an_older_copy_is_left_its_newest_state_takes_the_place(tmp_path: Path) -> None:
    train(SiteStates(tmp_path), None, 4)
    train(SiteStates(tmp_path), 4, 5)
    states = SiteStates(tmp_path)
    words = "the state after round 8 is lost, the state after round 6 takes its place"
    assert states.count(7) == words
    assert own(states) == [5]
    train(states, 7, 8)
    assert states.count(8) is None
    assert own(states) == [8]
