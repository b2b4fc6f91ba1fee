"""How strongly a client's model may count, on cases that can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.evaluation.guard import STEPS, Guardian, largest_step, variation
from pfedmma_deploy.types import ClientData, Example, Federation, Mixing
from tests.images import MemoryDataset

DATASET = MemoryDataset(("cat", "dog"), [0, 1, 0, 1], split="val")
CLIENT = ClientData("a", (0, 1), train=DATASET.examples[2:], val=DATASET.examples[:2], test=())
NO_VALIDATION = ClientData("b", (0, 1), train=DATASET.examples, val=(), test=())


def test_variation_by_hand() -> None:
    before = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    found = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert variation(found, before) == 25.0  # half of the belief of one of two rows went elsewhere
    assert variation(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])) == 100.0


@pytest.mark.parametrize("largest", range(STEPS + 1))
def test_the_largest_step_is_found_in_five_looks(largest: int) -> None:
    looked = []

    def is_within(step: int) -> bool:
        looked.append(step)
        return step <= largest

    assert largest_step(is_within) == largest
    assert len(looked) <= 5


class Moving(Adapter):
    """Trained so that scores and names move in proportion to the strength."""

    def scopes(self) -> dict[str, Any]:
        return {}


class ByHand:
    """A scorer whose images have scores (0, s) among two words, s the strength times `reach`.

    Class names turn by `turn` times the strength; the first `right` images of a client are right up
    to the strength `until`, and none above.
    """

    logit_scale = 1.0

    def __init__(self, *, reach: float = 0.0, turn: float = 0.0, until: float = 2.0) -> None:
        self.reach, self.turn, self.until = reach, turn, until
        self.federation = Federation(DATASET, (0, 1), (), (CLIENT,), (), ())
        self.asked: set[float] = set()

    def scores_among(
        self, adapter: Adapter, examples: Sequence[Example], words: Sequence[str]
    ) -> list[Tensor]:
        strength = adapter.strength if isinstance(adapter, Moving) else 0.0
        self.asked.add(strength)
        scores = torch.zeros(len(examples), len(words))
        scores[:, 0] = strength * self.reach
        return [scores]

    def encode_names(self, adapter: Adapter, names: Sequence[str]) -> Tensor:
        return torch.tensor([[1.0, 0.0]]).repeat(len(names), 1)

    def encode_texts(self, adapter: Adapter, labels: Sequence[int]) -> Tensor:
        strength = adapter.strength if isinstance(adapter, Moving) else 0.0
        return torch.tensor([[strength * self.turn, 0.0], [0.0, 0.0]])

    def accuracy_on(self, adapter: Adapter, examples: Sequence[Example]) -> float:
        return 100.0 if adapter.strength <= self.until else 0.0


def guardian(scorer: ByHand, bound: float) -> Guardian:
    found = Guardian(scorer, bound)  # type: ignore[arg-type]  # stands in for it
    found.words = ("rain", "snow")
    return found


def sigmoid(score: float) -> float:
    return float(torch.tensor(score, dtype=torch.float64).sigmoid())


def test_a_client_that_moves_nothing_counts_as_trained() -> None:
    found = guardian(ByHand(), 5.0).choose(Moving(), CLIENT)
    assert (found.strength, found.moved_images, found.moved_names) == (1.0, 0.0, 0.0)
    assert (found.validation, found.validation_zero_shot, found.images) == (100.0, 100.0, 2)


def test_beliefs_about_images_bound_the_strength() -> None:
    """Scores (s, 0) with s = a: the belief moves by sigmoid(a) - 1/2, 5 points at a = 0.2007."""
    found = guardian(ByHand(reach=1.0), 5.0).choose(Moving(), CLIENT)
    assert found.strength == 3 / 16
    assert found.moved_images == pytest.approx(100 * (sigmoid(3 / 16) - 0.5))
    assert found.moved_images_as_trained == pytest.approx(100 * (sigmoid(1.0) - 0.5))
    assert found.bound == 5.0


def test_beliefs_about_names_bound_it_as_well() -> None:
    found = guardian(ByHand(turn=2.0), 5.0).choose(Moving(), CLIENT)
    assert found.strength == 1 / 16  # 2 a = 0.2007 lies at a = 0.1003
    assert found.moved_names == pytest.approx(100 * (sigmoid(2 / 16) - 0.5))
    assert found.moved_images == 0.0


def test_a_bound_of_zero_leaves_zero_shot() -> None:
    found = guardian(ByHand(reach=1.0), 0.0).choose(Moving(), CLIENT)
    assert (found.strength, found.moved_images) == (0.0, 0.0)


def test_a_client_never_answers_worse_than_zero_shot_on_its_own_validation_images() -> None:
    """Wrong above 1/4: 1 and 1/2 are tried, 1/4 holds."""
    found = guardian(ByHand(until=0.25), 5.0).choose(Moving(), CLIENT)
    assert (found.strength, found.validation, found.validation_zero_shot) == (0.25, 100.0, 100.0)


def test_training_images_tell_where_there_are_no_validation_images() -> None:
    found = guardian(ByHand(reach=1.0, until=0.0), 5.0).choose(Moving(), NO_VALIDATION)
    assert (found.strength, found.images) == (3 / 16, 4)
    assert found.validation is found.validation_zero_shot is None


def test_methods_that_mix_scores_have_no_names_to_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    scores: Mixing = "scores"
    monkeypatch.setattr(Moving, "interpolation", scores)
    found = guardian(ByHand(turn=100.0), 5.0).choose(Moving(), CLIENT)
    assert (found.strength, found.moved_names, found.moved_names_as_trained) == (1.0, None, None)


def test_no_word_is_the_name_of_a_class() -> None:
    words = Guardian(ByHand(), 5.0).words  # type: ignore[arg-type]  # stands in for it
    assert not {"cat", "dog"} & set(words)
    assert 100 <= len(words) <= 128
