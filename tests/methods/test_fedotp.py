"""FedOTP: transport plans against closed forms and against its own conditions in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.methods.fedotp import FedOTP, TransportPrompts, transport_plan
from pfedmma_deploy.types import Scope
from tests.methods import inputs
from tests.tinyclip import tiny_backbone


def test_a_plan_whose_rows_are_free() -> None:
    """2 x 2, similarities (s, t; t, s): by symmetry every row gives 0.4 < 1/2, so no row is full
    and a column of 0.4 is divided as exp(s/eps) to exp(t/eps).
    """
    s, t, eps = 0.9, 0.8, 0.1
    plan = transport_plan(torch.tensor([[s, t], [t, s]]), 0.8, eps, 100)
    share = math.exp(s / eps) / (math.exp(s / eps) + math.exp(t / eps))
    expected = torch.tensor([[share, 1 - share], [1 - share, share]]) * 0.4
    torch.testing.assert_close(plan, expected)


def test_a_plan_with_a_full_row() -> None:
    """Both prompts want the first patch, which has 1/2 to give: the second gives the other 0.3."""
    plan = transport_plan(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), 0.8, 0.1, 100)
    expected = torch.tensor([[0.25, 0.25], [0.15, 0.15]])
    torch.testing.assert_close(plan, expected)


def exact_plan(similarity: Tensor, mass: float, eps: float) -> Tensor:
    """By the conditions of its optimum: T = diag(u) K diag(v) with u <= 1, where u < 1 the row is
    full, and every column exact. In float64, in logarithms, until nothing moves.
    """
    rows, columns = similarity.shape
    log_k = (similarity.double() - 1) / eps
    log_v = torch.zeros(columns, dtype=torch.float64)
    for _ in range(20_000):
        log_u = (-math.log(rows) - torch.logsumexp(log_k + log_v, dim=1)).clamp(max=0)
        log_v = math.log(mass / columns) - torch.logsumexp(log_k + log_u[:, None], dim=0)
    return (log_u[:, None] + log_k + log_v).exp()


@pytest.mark.parametrize("eps", [0.1, 0.01])
@pytest.mark.parametrize("mass", [0.5, 0.8, 1.0])
def test_plans_of_random_problems(eps: float, mass: float) -> None:
    """What CLIP's cosines look like: 49 patches, two prompts, both values of eps."""
    generator = torch.Generator().manual_seed(5)
    similarity = 0.2 + 0.05 * torch.randn(3, 49, 2, generator=generator)
    found = transport_plan(similarity, mass, eps, 1000)
    torch.testing.assert_close(found.sum(dim=1), torch.full((3, 2), mass / 2))
    assert found.sum(dim=2).max() < 1 / 49 + 1e-5
    assert found.sum(dim=2).max() > 0.9 / 49 * mass
    for problem, plan in zip(similarity, found, strict=True):
        torch.testing.assert_close(
            plan.double(), exact_plan(problem, mass, eps), atol=1e-5, rtol=1e-2
        )


def test_a_small_eps_does_not_vanish() -> None:
    """exp(-(1 - S) / eps) is 0 in float32 here; the plan is not."""
    plan = transport_plan(torch.tensor([[-0.9, -0.8], [-0.7, -0.9]]), 0.8, 0.01, 100)
    assert torch.isfinite(plan).all()
    torch.testing.assert_close(plan.sum(dim=0), torch.tensor([0.4, 0.4]))


def test_one_problem_does_not_depend_on_its_neighbours() -> None:
    generator = torch.Generator().manual_seed(6)
    similarity = torch.randn(4, 9, 2, generator=generator) * 0.3
    together = transport_plan(similarity, 0.8, 0.1, 100)
    for problem, plan in zip(similarity, together, strict=True):
        torch.testing.assert_close(transport_plan(problem, 0.8, 0.1, 100), plan)


def adapter_of(**parameters: Any) -> TransportPrompts:
    adapter = inputs.build(FedOTP, **parameters)
    assert isinstance(adapter, TransportPrompts)
    return adapter


def test_scores_by_hand() -> None:
    """One image of two patches, one class: sum(plan * similarity) * scale."""
    adapter = adapter_of()
    images = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    texts = torch.tensor([[[0.8, 0.6], [0.6, 0.8]]])
    share = math.exp(8) / (math.exp(8) + math.exp(6))
    expected = 10 * 0.8 * (share * 0.8 + (1 - share) * 0.6)
    assert float(adapter.logits(images, texts, 10.0)) == pytest.approx(expected, rel=1e-5)


def test_the_plan_has_no_gradient() -> None:
    """d logit / d texts = scale * sum(plan * images), the plan being a constant."""
    adapter = adapter_of()
    images = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    texts = torch.tensor([[[0.8, 0.6], [0.6, 0.8]]], requires_grad=True)
    adapter.logits(images, texts, 10.0).sum().backward()  # type: ignore[no-untyped-call]
    plan = transport_plan(images[0] @ texts[0].T, 0.8, 0.1, 100)
    assert texts.grad is not None
    torch.testing.assert_close(texts.grad[0], 10 * plan.T @ images[0])


def test_features_of_patches_and_of_both_prompts() -> None:
    backbone, adapter, batch = tiny_backbone(), adapter_of(), inputs.batch()
    images = adapter.encode_image(backbone, inputs.pixels())
    texts = adapter.encode_text(backbone, batch.texts)
    assert images.shape == (5, 4, 16)
    assert texts.shape == (3, 2, 16)
    for features in (images, texts):
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(features.shape[:-1]))
    tokens = backbone.run_blocks("image", backbone.embed_image(inputs.pixels()))
    assert not torch.equal(images[:, 0], backbone.pool_image(tokens))
    swapped = tokens[:, [1, 0, 2, 3, 4]]
    torch.testing.assert_close(images[:, 0], backbone.pool_image(swapped), atol=1e-6, rtol=0)
    assert adapter.adapts == {"image", "text"}, "frozen features are not those of the patches"


def test_the_frozen_blocks_may_be_computed_beforehand() -> None:
    backbone, adapter = tiny_backbone(), adapter_of()
    prefix = backbone.image_activations(inputs.pixels(), adapter.first_block(backbone, "image"))
    found = adapter.encode_image(backbone, prefix)
    torch.testing.assert_close(found, adapter.encode_image(backbone, inputs.pixels()))


def test_both_prompts_learn_and_one_travels() -> None:
    adapter = adapter_of()
    FedOTP().loss(tiny_backbone(), adapter, inputs.batch()).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapter.parameters())
    assert adapter.scopes() == {"shared": Scope.SHARED, "local": Scope.LOCAL}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"mass": 1.5}, "mass must be above 0 and at most 1, not 1.5."),
        ({"mass": 0.0}, "mass must be above 0 and at most 1, not 0.0."),
        ({"epsilon": 0.0}, "epsilon must be above 0, not 0.0."),
        ({"iterations": 0}, "iterations must be 1 or more, not 0."),
    ],
)
def test_values_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        inputs.build(FedOTP, **parameters)
    assert str(caught.value) == message
