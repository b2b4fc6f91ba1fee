"""pFedPT: where the frame lies, and that frame and adapter learn in turns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.methods.pfedpt import FramedAdapter, PFedPT
from pfedmma_deploy.types import Scope
from tests.methods import inputs
from tests.methods.runs import client_run
from tests.tinyclip import tiny_backbone


def framed(**parameters: Any) -> FramedAdapter:
    adapter = inputs.build(PFedPT, **{"scale": 1.0, "bottleneck_dim": 4, **parameters})
    assert isinstance(adapter, FramedAdapter)
    return adapter


def test_the_frame_lies_around_the_image() -> None:
    """16 pixels, a frame of 3: a border of ones around 10 x 10 zeros."""
    adapter = framed(frame_width=3)
    for side in adapter.frame.values():
        side.data.fill_(1.0)
    expected = torch.ones(16, 16, 3)
    expected[3:13, 3:13] = 0
    assert torch.equal(adapter.prompt(), expected)
    sizes = sum(side.numel() for side in adapter.frame.values())
    assert sizes == 3 * (16 * 16 - 10 * 10)


def test_it_is_added_to_the_normalised_image() -> None:
    backbone, adapter = tiny_backbone(), framed(frame_width=2)
    generator = torch.Generator().manual_seed(0)
    for side in adapter.frame.values():
        side.data.normal_(generator=generator)
    mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
    image = (inputs.pixels() / 255 - mean) / std + adapter.prompt()
    x = backbone.visual._embeds(image.permute(0, 3, 1, 2))
    expected = backbone.pool_image(backbone.run_blocks("image", x, adapter.hook))
    found = adapter.encode_image(backbone, inputs.pixels())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("size", "width"), [(16, 1), (32, 2), (224, 14)])
def test_default_width_is_a_sixteenth(size: int, width: int) -> None:
    from dataclasses import replace

    backbone = replace(tiny_backbone(), image_size=size)
    adapter = PFedPT().build(backbone, torch.Generator())
    assert isinstance(adapter, FramedAdapter)
    assert adapter.frame["top"].shape == (width, size, 3)


def test_scopes() -> None:
    for name, scope in framed().scopes().items():
        assert scope is (Scope.LOCAL if name.startswith("frame.") else Scope.SHARED)


def test_gradients_reach_both() -> None:
    adapter = framed()
    inputs.clip_loss(tiny_backbone(), adapter, inputs.batch()).backward()  # type: ignore[no-untyped-call]
    for name, value in adapter.named_parameters():
        assert value.grad is not None, name
        assert value.grad.any(), name


def test_a_round_trains_the_frame_and_then_the_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = framed()
    run = client_run(adapter, PFedPT())
    calls = []
    fit = run.fit

    def watched(**given: Any) -> float:
        calls.append((sorted(given["only"])[0].split(".")[0], given["lr"]))
        return fit(**given)

    monkeypatch.setattr(run, "fit", watched)
    before = adapter.tensors(*Scope)
    PFedPT().train_client(run)
    assert calls == [("frame", 1.0), ("adapter", None)]
    after = adapter.tensors(*Scope)
    assert all(not torch.equal(after[name], before[name]) for name in before)


def test_personalization_leaves_the_adapter_alone() -> None:
    adapter = framed()
    before = adapter.tensors(*Scope)
    PFedPT().train_client(client_run(adapter, PFedPT(), scopes=frozenset({Scope.LOCAL})))
    after = adapter.tensors(*Scope)
    for name, scope in adapter.scopes().items():
        assert torch.equal(after[name], before[name]) == (scope is Scope.SHARED), name


def test_a_frame_that_leaves_nothing() -> None:
    with pytest.raises(UsageError, match="frame_width must be below half of the image's 16 pix"):
        framed(frame_width=8)
