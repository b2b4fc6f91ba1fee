"""A learned context stands where words stand; FedProx's term by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pfedmma_deploy.adapters.prompts import encode_contexts
from pfedmma_deploy.backbone.clip import class_texts
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.methods.base import Update
from pfedmma_deploy.methods.promptfl import PromptFL, SharedContext
from pfedmma_deploy.types import Scope
from tests.methods import inputs
from tests.tinyclip import tiny_backbone


def learned(**parameters: Any) -> SharedContext:
    adapter = inputs.build(PromptFL, **parameters)
    assert isinstance(adapter, SharedContext)
    return adapter


def test_words_as_context_vectors_are_the_written_prompt() -> None:
    """The embeddings of "a photo of a" before each name: encode_text of the whole sentence."""
    backbone, adapter = tiny_backbone(), learned(context_vectors=4)
    adapter.ctx.data.copy_(inputs.words("a photo of a"))
    found = adapter.encode_text(backbone, inputs.texts())
    expected = backbone.encode_text(inputs.texts().prompts)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_several_contexts_at_once() -> None:
    """Names of different lengths and two contexts: each its own sentence."""
    backbone = tiny_backbone()
    contexts = torch.stack([inputs.words("one two three"), inputs.words("a red big")])
    found = encode_contexts(backbone, inputs.texts(), contexts)
    for i, template in enumerate(("one two three {}.", "a red big {}.")):
        written = class_texts(backbone, inputs.NAMES, template).prompts
        torch.testing.assert_close(found[:, i], backbone.encode_text(written), atol=1e-6, rtol=0)


def test_only_the_context_learns() -> None:
    backbone, adapter = tiny_backbone(), learned()
    value = PromptFL().loss(backbone, adapter, inputs.batch())
    value.backward()  # type: ignore[no-untyped-call]
    assert adapter.ctx.grad is not None
    assert adapter.ctx.grad.abs().max() > 0
    assert not adapter.encode_image(backbone, inputs.pixels()).requires_grad
    assert adapter.adapts == {"text"}


def test_proximal_term_by_hand() -> None:
    """Every number of ctx 0.5 away from the received: mu/2 * count * 0.25, gradient mu * 0.5."""
    backbone, near, plain = tiny_backbone(), learned(mu=3.0), learned()
    batch = inputs.batch(received={"ctx": near.ctx.detach() - 0.5})
    added = PromptFL.configure({"mu": 3.0}).loss(backbone, near, batch) - inputs.clip_loss(
        backbone, plain, batch
    )
    assert float(added.detach()) == pytest.approx(3.0 / 2 * 16 * 24 * 0.25, rel=1e-5)
    added.backward()  # type: ignore[no-untyped-call]
    assert near.ctx.grad is not None
    assert plain.ctx.grad is not None
    torch.testing.assert_close(
        near.ctx.grad + plain.ctx.grad, torch.full_like(near.ctx, 1.5), atol=1e-4, rtol=0
    )


def test_without_mu_it_is_plain_cross_entropy() -> None:
    backbone, adapter = tiny_backbone(), learned()
    batch = inputs.batch()
    scores = (
        20 * backbone.encode_image(inputs.pixels()) @ adapter.encode_text(backbone, batch.texts).T
    )
    expected = inputs.cross_entropy(scores, batch.labels)
    torch.testing.assert_close(PromptFL().loss(backbone, adapter, batch), expected)


def test_contexts_are_averaged_by_images() -> None:
    sent = [Update("a", {"ctx": torch.zeros(2)}, 1), Update("b", {"ctx": torch.ones(2)}, 3)]
    assert PromptFL().aggregator().combine(sent, {})["ctx"].tolist() == [0.75, 0.75]


def test_initial_state() -> None:
    adapter = learned(context_vectors=64)
    assert adapter.scopes() == {"ctx": Scope.SHARED}
    assert float(adapter.ctx.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert torch.equal(adapter.ctx, learned(context_vectors=64).ctx)


def test_a_name_too_long_for_the_tower() -> None:
    backbone, adapter = tiny_backbone(), learned(context_vectors=70)
    texts = class_texts(backbone, ["cat", "one two three four five six"], inputs.TEMPLATE)
    with pytest.raises(UsageError) as caught:
        adapter.encode_text(backbone, texts)
    assert str(caught.value) == (
        "The class name 'one two three four five six' takes 7 tokens with its full stop, but 70 "
        "context vectors leave 5 of the text tower's 77: shorten the name, or learn fewer vectors."
    )


def test_a_name_that_just_fits() -> None:
    backbone, adapter = tiny_backbone(), learned(context_vectors=70)
    texts = class_texts(backbone, ["one two three four"], inputs.TEMPLATE)
    assert adapter.encode_text(backbone, texts).shape == (1, 16)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"context_vectors": 0}, "context_vectors must be 1 or more, not 0."),
        ({"mu": -1.0}, "mu must be 0 or more, not -1.0."),
        (
            {"context_vectors": 74},
            "The text tower of test-clip reads 77 tokens: a learned context may have 73 vectors at "
            "most, not 74.",
        ),
    ],
)
def test_values_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        inputs.build(PromptFL, **parameters)
    assert str(caught.value) == message
