"""Numbers that a reader can compute by hand."""

import torch
from pfedmma_example.aggregator import GEOMETRIC_MEDIAN
from pfedmma_example.dataset import Shades
from pfedmma_example.method import Gain

from pfedmma_deploy.methods.aggregation import Update


def test_a_gain_scales_and_a_shift_moves() -> None:
    adapter = Gain(2, factor=0.5)
    adapter.gain.data, adapter.shift.data = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0])
    assert torch.equal(adapter.change(torch.tensor([[3.0, 3.0]])), torch.tensor([[6.0, 5.0]]))


def test_one_client_far_away_moves_little() -> None:
    values = {"a": 0.0, "b": 1.0, "c": 1000.0}
    updates = [Update(name, {"x": torch.tensor([value])}, 1) for name, value in values.items()]
    found = GEOMETRIC_MEDIAN.combine(updates, {})["x"].item()
    assert abs(found - 1) < 0.05


def test_an_image_is_the_same_every_time() -> None:
    data = Shades()
    first = data.examples[0]
    assert (len(data.examples), first.key) == (88, "north/train/red/0")
    assert data.open_image(first).tobytes() == data.open_image(first).tobytes()
