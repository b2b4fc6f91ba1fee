"""The multi-modal adapter against independent float64 numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pfedmma_deploy.adapters.multimodal import MultiModalAdapter, pair_count
from pfedmma_deploy.backbone.clip import ClassTexts
from pfedmma_deploy.methods.base import Batch
from pfedmma_deploy.methods.pfedmma import PFedMMA
from pfedmma_deploy.types import Scope
from tests import reference
from tests.tinyclip import tiny_backbone

PROMPTS = ["a photo of a cat.", "a photo of a large dog.", "a photo of a ship."]
SCALE = 0.05


def make_adapter(scale: float = SCALE) -> MultiModalAdapter:
    """A tiny adapter whose biases are not zero, so that they matter in every test."""
    generator = torch.Generator().manual_seed(7)
    adapter = MultiModalAdapter(
        {"image": 32, "text": 24}, {"image": 3, "text": 3}, 4, scale, generator
    )
    for name, value in adapter.named_parameters():
        if name.endswith("bias"):
            value.data.normal_(0, 0.1, generator=generator)
    return adapter


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8, generator=generator)
    return pixels, torch.tensor([0, 1, 2, 1, 0]), tiny_backbone().tokenize(PROMPTS)


def doubles(adapter: MultiModalAdapter) -> dict[str, Tensor]:
    return {name: value.detach().double() for name, value in adapter.named_parameters()}


def weights() -> dict[str, Tensor]:
    return {name: value.double() for name, value in tiny_backbone().model.state_dict().items()}


def test_one_block_by_hand() -> None:
    """d = 2, r = 1: every number can be followed on paper."""
    adapter = MultiModalAdapter(
        {"image": 2, "text": 2}, {"image": 1, "text": 1}, 1, 0.5, torch.Generator()
    )
    values = {
        "image.0.down.weight": [[1.0, 2.0]],
        "image.0.down.bias": [-1.0],
        "image.0.up.weight": [[3.0], [-1.0]],
        "image.0.up.bias": [0.5, 0.0],
        "text.0.down.weight": [[1.0, 1.0]],
        "text.0.down.bias": [0.0],
        "text.0.up.weight": [[1.0], [1.0]],
        "text.0.up.bias": [0.0, 0.0],
        "pair.0.weight": [[2.0]],
        "pair.0.bias": [1.0],
    }
    adapter.load({name: torch.tensor(value) for name, value in values.items()})
    h = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    # first token: relu(1 + 2 - 1) = 2, relu(2*2 + 1) = 5, up (15.5, -5), times 0.5
    # second token: relu(-1) = 0, relu(1) = 1, up (3.5, -1), times 0.5
    expected = torch.tensor([[[7.75, -2.5], [1.75, -0.5]]])
    added = adapter.hook("image", 0, h)
    assert added is not None
    assert torch.equal(added, expected)


def test_features_match_the_equations() -> None:
    backbone, adapter = tiny_backbone(), make_adapter()
    pixels, _, ids = inputs()
    own = doubles(adapter)
    images = backbone.encode_image(pixels, adapter.hook).double()
    texts = backbone.encode_text(ids, adapter.hook).double()
    torch.testing.assert_close(
        images, reference.image_features(pixels, weights(), own, SCALE), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        texts, reference.text_features(ids, weights(), own, SCALE), atol=1e-6, rtol=0
    )
    assert (images - backbone.encode_image(pixels)).abs().max() > 1e-3


def batch() -> Batch:
    pixels, labels, ids = inputs()
    return Batch(pixels, labels, ClassTexts(("a",) * len(ids), prompts=ids, bare=ids), 20.0)


@pytest.mark.parametrize("scale", [0.001, 0.05, 1.0])
def test_gradient_of_every_parameter(scale: float) -> None:
    """Parameters learn as if s were 1, the trunk's gradient stays s-scaled."""
    backbone, adapter = tiny_backbone(), make_adapter(scale)
    pixels, labels, ids = inputs()
    value = PFedMMA().loss(backbone, adapter, batch())
    value.backward()  # type: ignore[no-untyped-call]
    expected = reference.gradients(pixels, labels, ids, weights(), doubles(adapter), scale, 20.0)
    assert expected.keys() == dict(adapter.named_parameters()).keys()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None, name
        size = expected[name].abs().max()
        assert size > 0, name
        error = (parameter.grad.double() - expected[name]).abs().max() / size
        assert error < 2e-4, f"{name}: {error}"


def test_the_backbone_gets_no_gradient() -> None:
    backbone, adapter = tiny_backbone(), make_adapter()
    value = PFedMMA().loss(backbone, adapter, batch())
    value.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None and not p.requires_grad for p in backbone.model.parameters())


def test_initial_state() -> None:
    """Kaiming-normal weights of fan_out with gain sqrt(2), zero biases."""
    adapter = MultiModalAdapter(
        {"image": 768, "text": 512},
        {"image": 12, "text": 12},
        32,
        0.001,
        torch.Generator().manual_seed(0),
    )
    parameters = dict(adapter.named_parameters())
    assert all(not v.any() for n, v in parameters.items() if n.endswith("bias"))
    for name, fan_out in (("image.4.down", 32), ("image.11.up", 768), ("pair.7", 32)):
        deviation = float(parameters[f"{name}.weight"].detach().std())
        assert deviation == pytest.approx((2 / fan_out) ** 0.5, rel=0.06), name


def test_parameter_counts_of_the_paper() -> None:
    """ViT-B, r = 32: 8,448 shared numbers, 33,792 bytes each way; 674,560 in all."""
    adapter = MultiModalAdapter(
        {"image": 768, "text": 512}, {"image": 12, "text": 12}, 32, 0.001, torch.Generator()
    )
    count = {
        scope: sum(value.numel() for value in adapter.tensors(scope).values()) for scope in Scope
    }
    assert count == {Scope.SHARED: 8_448, Scope.LOCAL: 674_560 - 8_448, Scope.FROZEN: 0}
    assert set(adapter.tensors(Scope.SHARED)) == {
        f"pair.{p}.{part}" for p in range(8) for part in ("weight", "bias")
    }


def test_every_parameter_has_one_scope() -> None:
    adapter = make_adapter()
    assert adapter.scopes().keys() == dict(adapter.named_parameters()).keys()


@pytest.mark.parametrize(
    ("image", "text", "pairs"), [(12, 12, 8), (24, 12, 8), (8, 6, 4), (3, 3, 2)]
)
def test_pairs_are_the_upper_two_thirds(image: int, text: int, pairs: int) -> None:
    assert pair_count(image, text) == pairs


def test_towers_of_unequal_depth_are_joined_at_the_top() -> None:
    adapter = MultiModalAdapter(
        {"image": 8, "text": 4}, {"image": 8, "text": 6}, 2, 1.0, torch.Generator()
    )
    names = set(dict(adapter.named_parameters()))
    assert {n.split(".")[1] for n in names if n.startswith("image")} == {"4", "5", "6", "7"}
    assert {n.split(".")[1] for n in names if n.startswith("text")} == {"2", "3", "4", "5"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pair.0.weight": None}, "parameter pair.0.weight is missing"),
        ({"pair.9.weight": torch.zeros(4, 4)}, "parameter pair.9.weight is not of this adapter"),
        (
            {"pair.0.bias": torch.zeros(5)},
            r"parameter pair.0.bias has shape \(5,\), expected \(4,\)",
        ),
    ],
)
def test_loading_is_strict(change: dict[str, Tensor | None], message: str) -> None:
    adapter = make_adapter()
    tensors: dict[str, Tensor | None] = {
        **adapter.tensors(Scope.LOCAL),
        **adapter.tensors(Scope.SHARED),
    }
    tensors |= change
    with pytest.raises(ValueError, match=message):
        adapter.load({name: value for name, value in tensors.items() if value is not None})


def test_a_tensor_given_twice_is_refused() -> None:
    adapter = make_adapter()
    shared = adapter.tensors(Scope.SHARED)
    with pytest.raises(ValueError, match=r"pair.0.bias is given twice"):
        adapter.load(shared, shared)
