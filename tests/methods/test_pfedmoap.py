"""pFedMoAP: the gate by hand, who is whose expert, and the server's state."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pfedmma_deploy.adapters.prompts import encode_context
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.federated.engine import traffic
from pfedmma_deploy.methods.base import Update
from pfedmma_deploy.methods.pfedmoap import Gate, MixedPrompts, PFedMoAP
from pfedmma_deploy.types import ClientData, Scope
from tests.methods import inputs
from tests.tinyclip import tiny_backbone


def mixed(**parameters: Any) -> MixedPrompts:
    adapter = inputs.build(PFedMoAP, **parameters)
    assert isinstance(adapter, MixedPrompts)
    return adapter


def identity_gate() -> Gate:
    """Two heads of one dimension; values doubled, a bias of (0, 1) at the end."""
    gate = Gate(2, 2, 2, 10.0, torch.Generator())
    for layer in (gate.query, gate.key, gate.value, gate.out):
        layer.weight.data.copy_(torch.eye(2))
        layer.bias.data.zero_()
    gate.value.weight.data.mul_(2)
    gate.out.bias.data.copy_(torch.tensor([0.0, 1.0]))
    return gate


def test_gate_by_hand() -> None:
    """One image (0.6, 0.8), one class with two experts (1, 0) and (0, 1): in the first head the
    scores are 10 * 0.6 * (1, 0), in the second 10 * 0.8 * (0, 1).
    """
    gated = identity_gate()(torch.tensor([[0.6, 0.8]]), torch.eye(2).unsqueeze(0))
    first = math.exp(6) / (math.exp(6) + 1)
    second = math.exp(8) / (math.exp(8) + 1)
    torch.testing.assert_close(gated, torch.tensor([[[2 * first, 2 * second + 1]]]))


def test_scores_by_hand() -> None:
    """lambda * scale * <x, t_0> + scale * <x, gated>."""
    adapter = mixed()
    adapter.gate = identity_gate()
    image = torch.tensor([[0.6, 0.8]])
    texts = torch.eye(2).unsqueeze(0)
    gated = adapter.gate(image, texts)[0, 0]
    expected = 0.5 * 20 * 0.6 + 20 * float((image[0] * gated).sum().detach())
    assert float(adapter.logits(image, texts, 20.0).detach()) == pytest.approx(expected)


def test_without_experts_it_is_clip() -> None:
    adapter, backbone, batch = mixed(), tiny_backbone(), inputs.batch()
    images = adapter.encode_image(backbone, inputs.pixels())
    texts = adapter.encode_text(backbone, batch.texts)
    assert texts.shape == (3, 1, 16)
    torch.testing.assert_close(adapter.logits(images, texts, 20.0), 20 * images @ texts[:, 0].T)


@pytest.mark.parametrize(
    ("embed_dim", "stride", "width", "heads"),
    [(512, 4, 128, 8), (384, 3, 128, 8), (1024, 8, 128, 8), (16, 1, 16, 8), (100, 1, 100, 5)],
)
def test_widths_of_the_gate(embed_dim: int, stride: int, width: int, heads: int) -> None:
    gate = Gate(embed_dim, 128, 8, 10.0, torch.Generator())
    reduced = gate.reduce(torch.arange(float(embed_dim)))
    assert reduced.tolist() == list(range(0, embed_dim, stride))
    assert (len(reduced), gate.query.weight.shape, gate.heads) == (width, (width, width), heads)


def prompts(values: dict[str, float]) -> list[Update]:
    return [Update(c, {"ctx": torch.full((2, 3), v)}, 1) for c, v in values.items()]


def server_of(values: dict[str, float]) -> dict[str, Tensor]:
    start = {"initial": torch.zeros(2, 3)}
    return PFedMoAP().aggregator().combine(prompts(values), start)


def distribute(server: dict[str, Tensor], client: str, experts: int = 9) -> dict[str, Tensor]:
    return PFedMoAP.configure({"num_experts": experts}).distribute(server, client)


def experts_of(server: dict[str, Tensor], client: str, experts: int = 9) -> list[float]:
    sent = distribute(server, client, experts)
    return [float(sent[f"expert.{k}"][0, 0]) for k in range(int(sent["present"].sum()))]


def test_the_nearest_others_are_experts() -> None:
    server = server_of({"a": 0.0, "b": 5.0, "c": 1.0, "d": -2.0, "e": 8.0})
    assert experts_of(server, "a", 2) == [1.0, -2.0]
    assert experts_of(server, "e", 2) == [5.0, 1.0]
    assert float(distribute(server, "e")["ctx"][0, 0]) == 8.0


@pytest.mark.parametrize("client", ["a", "b", "c"])
def test_nobody_is_his_own_expert(client: str) -> None:
    """Not even when the others' prompts are the same as his: they come by id."""
    server = server_of({"b": 1.0, "a": 1.0, "c": 1.0})
    sent = distribute(server, client)
    assert sent["present"].tolist() == [1.0] * 2 + [0.0] * 7
    own = server[f"prompt.{client}"]
    assert all(sent[f"expert.{k}"] is not own for k in range(2))
    assert set(sent) == {"ctx", "present", "expert.0", "expert.1"}


def test_who_has_not_trained_gets_experts_and_is_none() -> None:
    server = server_of({"a": 4.0, "b": 3.0})
    assert experts_of(server, "new") == [3.0, 4.0]
    assert torch.equal(distribute(server, "new")["ctx"], torch.zeros(2, 3))
    assert experts_of(server, "a") == [3.0]


def test_nobody_in_the_first_round() -> None:
    adapter = mixed(num_experts=3)
    server = PFedMoAP().start(adapter, ["a", "b"])
    sent = distribute(server, "a", 3)
    assert sent["present"].tolist() == [0.0, 0.0, 0.0]
    assert sent.keys() == {"ctx", "present"}
    assert torch.equal(sent["ctx"], adapter.ctx)


def test_prompts_of_clients_that_were_not_chosen_stay() -> None:
    server = server_of({"a": 1.0, "b": 2.0})
    later = PFedMoAP().aggregator().combine(prompts({"a": 7.0}), server)
    assert {n: float(v[0, 0]) for n, v in later.items() if n.startswith("prompt")} == {
        "prompt.a": 7.0,
        "prompt.b": 2.0,
    }
    assert float(server["prompt.a"][0, 0]) == 1.0, "the earlier state is left as it was"


@pytest.mark.parametrize(("clients", "prompts"), [(1, 1), (3, 3), (20, 4)])
def test_bytes_once_everybody_has_taken_part(clients: int, prompts: int) -> None:
    """Up one prompt of 16 x 24 numbers; down one's own, the others' up to three, and the places."""
    held = [ClientData(str(i), (0,), (), (), ()) for i in range(clients)]
    sizes = traffic(PFedMoAP.configure({"num_experts": 3}), mixed(num_experts=3), held)
    assert sizes == {"up": 4 * 16 * 24, "down": prompts * 4 * 16 * 24 + 3 * 4}


def with_experts() -> MixedPrompts:
    """A client that has received two experts of three places."""
    adapter = mixed(num_experts=3)
    generator = torch.Generator().manual_seed(4)
    updates = [Update(c, {"ctx": torch.randn(16, 24, generator=generator)}, 1) for c in ("b", "c")]
    server = PFedMoAP().aggregator().combine(updates, PFedMoAP().start(adapter, ["a", "b", "c"]))
    kept = adapter.tensors(Scope.LOCAL, Scope.FROZEN)
    adapter.load({**kept, **distribute(server, "a", 3)})
    return adapter


def test_what_is_received_is_what_is_encoded() -> None:
    """Own prompt first, then the experts that are there; the empty place is left out."""
    adapter, backbone, texts = with_experts(), tiny_backbone(), inputs.texts()
    found = adapter.encode_text(backbone, texts)
    expected = [encode_context(backbone, texts, c) for c in (adapter.ctx, *adapter.expert[:2])]
    torch.testing.assert_close(found, torch.stack(expected, dim=1), atol=1e-6, rtol=0)


def test_held_experts_are_the_same_and_are_let_go() -> None:
    adapter, backbone, texts = with_experts(), tiny_backbone(), inputs.texts()
    expected = adapter.encode_text(backbone, texts)
    with adapter.experts_held(backbone, texts):
        for parameter in adapter.expert:
            parameter.data.zero_()
        assert torch.equal(adapter.encode_text(backbone, texts), expected)
        assert not torch.equal(adapter.encode_text(backbone, inputs.texts()), expected)
    assert not torch.equal(adapter.encode_text(backbone, texts), expected)


def test_prompt_and_gate_learn_and_experts_do_not() -> None:
    adapter = with_experts()
    PFedMoAP().loss(tiny_backbone(), adapter, inputs.batch()).backward()  # type: ignore[no-untyped-call]
    scopes = adapter.scopes()
    assert scopes["ctx"] is Scope.SHARED
    for name, parameter in adapter.named_parameters():
        if scopes[name] is Scope.FROZEN:
            assert parameter.grad is None, name
        elif name != "gate.key.bias":  # the same for every expert: softmax takes it away
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_the_gate_starts_from_the_seed() -> None:
    one, two, other = mixed(), mixed(), inputs.build(PFedMoAP, seed=1)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(
        one.gate.query.weight, dict(other.named_parameters())["gate.query.weight"]
    )
    assert float(one.gate.query.weight.detach().abs().max()) <= 16**-0.5


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"num_experts": 0}, "num_experts must be 1 or more, not 0."),
        ({"gating_scale": 0.0}, "gating_scale must be above 0, not 0.0."),
        ({"local_weight": -0.5}, "local_weight must be 0 or more, not -0.5."),
    ],
)
def test_values_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        inputs.build(PFedMoAP, **parameters)
    assert str(caught.value) == message
