"""An adapter at a strength: what it changes, scaled or mixed, on the same parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma_deploy.adapters.base import mix_features
from pfedmma_deploy.backbone.clip import class_texts
from pfedmma_deploy.methods.registry import METHODS
from tests.export.kinds import EXPORTABLE, clients_of
from tests.methods import inputs
from tests.tinyclip import tiny_backbone

EXACT = {
    name for name in EXPORTABLE if name not in {"promptfl", "fedpgp", "fedclip", "clip-adapter"}
}


def encoded(name: str, strength: float) -> tuple[Tensor, Tensor]:
    """Features of images and of class names by a client of a method."""
    backbone = tiny_backbone()
    adapter = clients_of(name)[0].adapter.at(strength)
    texts = class_texts(backbone, inputs.NAMES, inputs.TEMPLATE)
    with torch.inference_mode():
        return adapter.encode_image(backbone, inputs.pixels()), adapter.encode_text(backbone, texts)


def test_features_between_by_hand() -> None:
    """(1, 0) and (0, 1): half of the way is at 45 degrees."""
    found = mix_features(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 0.5)
    torch.testing.assert_close(found, torch.full((1, 2), 0.5**0.5))


@pytest.mark.parametrize("name", EXPORTABLE)
def test_strength_0_is_zero_shot_and_1_as_trained(name: str) -> None:
    backbone = tiny_backbone()
    texts = class_texts(backbone, inputs.NAMES, inputs.TEMPLATE)
    plain = backbone.encode_image(inputs.pixels()), backbone.encode_text(texts.prompts)
    for found, expected in zip(encoded(name, 0.0), plain, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    adapter = clients_of(name)[0].adapter
    own = adapter.encode_image(backbone, inputs.pixels()), adapter.encode_text(backbone, texts)
    for found, expected in zip(encoded(name, 1.0), own, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", EXPORTABLE)
def test_every_method_says_how_it_interpolates(name: str) -> None:
    """Exact: the scaled addition. Features: those of zero-shot and of the client, mixed."""
    adapter = clients_of(name)[0].adapter
    assert adapter.interpolation == ("exact" if name in EXACT else "features")
    mixes = []
    for none, half, full in zip(*(encoded(name, a) for a in (0.0, 0.5, 1.0)), strict=True):
        mixes.append(torch.allclose(half, F.normalize(none + full, dim=-1), atol=1e-6))
        torch.testing.assert_close(half.norm(dim=-1), torch.ones(len(half)))
    assert all(mixes) == (name not in EXACT)


def test_what_is_added_is_scaled_by_hand() -> None:
    """A hook that adds (2, 4), and a change of a weight from 1 to 3."""
    adapter = clients_of("plora")[0].adapter
    h = torch.tensor([[[2.0, 4.0]]])
    adapter.hook = lambda tower, block, h: h  # type: ignore[method-assign]
    adapter.attention = lambda tower, block, weight: 3 * weight  # type: ignore[method-assign]
    half = adapter.at(0.5)
    found = half.scaled_hook("image", 0, h)
    assert found is not None and found.tolist() == [[[1.0, 2.0]]]
    assert half.scaled_attention("image", 0, torch.ones(1)).tolist() == [2.0]
    assert (half.strength, adapter.strength) == (0.5, 1.0)


def test_it_shares_its_parameters() -> None:
    adapter = clients_of("pfedmma")[0].adapter
    for own, other in zip(adapter.parameters(), adapter.at(0.5).parameters(), strict=True):
        assert own is other


@pytest.mark.parametrize("name", ["fedotp", "pfedmoap", "fedtpg", "fedmaple"])
def test_adapters_that_leave_the_mixing_to_the_scores_say_so(name: str) -> None:
    assert inputs.build(METHODS[name]).interpolation == "scores"
