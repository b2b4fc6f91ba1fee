"""TAP: what a client holds, the replacement rule, aggregation per component, both stages."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pfedmma_deploy.adapters.lora import LowRankBlock
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.methods.base import ClientRun, Update
from pfedmma_deploy.methods.tap import (
    COMPONENTS,
    TAP,
    ComponentAdapter,
    TAPParameters,
    TAPState,
    score_divergence,
    score_loss,
    task_scores,
)
from pfedmma_deploy.types import Scope
from tests.methods import inputs
from tests.methods.runs import client_data, client_run
from tests.tinyclip import tiny_backbone

IMAGE_ONLY = ("image/shared", "image/classify")


def method(**parameters: Any) -> TAP:
    return TAP.configure({"rank": 2, **parameters})


def tap(**parameters: Any) -> ComponentAdapter:
    adapter = inputs.build(TAP, **{"rank": 2, **parameters})
    assert isinstance(adapter, ComponentAdapter)
    return adapter


def disturb(adapter: ComponentAdapter, model: str, seed: int) -> None:
    """B away from zero, so that the model says something of its own."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in adapter.named_parameters():
        if name.startswith(model) and name.endswith("B"):
            value.data.normal_(0, 0.1, generator=generator)


def personal(adapter: ComponentAdapter) -> dict[str, Tensor]:
    return adapter.tensors(Scope.LOCAL)


@pytest.mark.parametrize(
    ("captions", "given", "towers", "parts"),
    [
        (False, {}, {"image"}, {"shared", "classify"}),
        (True, {}, {"image", "text"}, {"shared", "classify", "retrieve"}),
        (True, {"tasks": "one"}, {"image", "text"}, {"shared", "retrieve"}),
        (False, {"tasks": "one"}, {"image"}, {"shared", "classify"}),
        (True, {"tasks": "classify"}, {"image", "text"}, {"shared", "classify"}),
        (True, {"modalities": "image"}, {"image"}, {"shared", "classify", "retrieve"}),
        (False, {"modalities": "both"}, {"image", "text"}, {"shared", "classify"}),
    ],
)
def test_what_a_client_holds(
    captions: bool, given: dict[str, Any], towers: set[str], parts: set[str]
) -> None:
    _, client = client_data(captions=captions)
    held = method(**given).components_of(client)
    assert set(held) == {f"{tower}/{part}" for tower in towers for part in parts}


def test_effective_weight_is_the_mean_of_shared_and_task() -> None:
    """W + (alpha / r) * (B_s A_s + B_t A_t) / 2 on queries and values."""
    adapter = tap(alpha=6.0)
    disturb(adapter, "personal", 1)
    adapter.held = COMPONENTS
    weight = tiny_backbone().blocks("text")[1].attn.in_proj_weight
    for task in ("classify", "retrieve"):
        parts = [adapter.get_submodule(f"personal.text.{p}.1") for p in ("shared", task)]
        q = torch.zeros(24, 24)
        for part in parts:
            assert isinstance(part, LowRankBlock)
            q = q + 3.0 * part.q.B @ part.q.A / 2
        with adapter.using("personal", task):
            found = adapter.attention("text", 1, weight)
        torch.testing.assert_close(found[:24], weight[:24] + q)
        assert torch.equal(found[24:48], weight[24:48])


def test_an_image_only_client_compares_with_frozen_text_features() -> None:
    backbone, adapter = tiny_backbone(), tap()
    disturb(adapter, "personal", 1)
    adapter.held = IMAGE_ONLY
    texts = inputs.texts()
    frozen = backbone.encode_text(texts.prompts)
    assert torch.equal(adapter.encode_text(backbone, texts), frozen)
    images = adapter.encode_image(backbone, inputs.pixels())
    assert not torch.equal(images, backbone.encode_image(inputs.pixels()))


def test_a_client_that_never_took_part_is_zero_shot_clip() -> None:
    backbone, adapter = tiny_backbone(), tap()
    disturb(adapter, "federated", 1)
    assert adapter.tasks == ()
    images = adapter.encode_image(backbone, inputs.pixels())
    assert torch.equal(images, backbone.encode_image(inputs.pixels()))


def test_both_models_start_equal() -> None:
    state = dict(tap().named_parameters())
    for name, value in state.items():
        if name.startswith("federated"):
            assert torch.equal(value, state[name.replace("federated", "personal", 1)])


def test_aggregation_per_component_over_its_holders() -> None:
    """a holds x and y (1 image), b holds x (3 images); nobody holds z."""
    server = {name: torch.tensor([9.0]) for name in ("x", "y", "z")}
    updates = [
        Update("a", {"x": torch.tensor([4.0]), "y": torch.tensor([6.0])}, 1),
        Update("b", {"x": torch.tensor([0.0])}, 3),
    ]
    found = {
        name: value.item() for name, value in TAP().aggregator().combine(updates, server).items()
    }
    assert found == {"x": 1.0, "y": 6.0, "z": 9.0}


def test_only_what_is_held_travels_either_way() -> None:
    adapter = tap()
    _, client = client_data()
    names = set(adapter.names("federated", IMAGE_ONLY))
    sent = TAP().upload(adapter, client)
    assert sent.keys() == names
    server = TAP().start(adapter, ["a"])
    assert len(server) == 3 * len(names), "six components on the server, two here"
    assert TAP().download(TAP().distribute(server, "a"), adapter, client).keys() == names


def test_info_nce_by_hand() -> None:
    """Two pairs, scores ((log 3, 0), (0, 0)): rows and columns give the same two losses."""
    scores = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    one_way = (math.log(4 / 3) + math.log(2)) / 2
    found = score_loss("retrieve", scores, torch.tensor([5, 7]))
    assert float(found) == pytest.approx(one_way)
    skewed = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    rows = (math.log(4) + math.log(2)) / 2
    columns = (math.log(2) + math.log(4)) / 2
    assert float(score_loss("retrieve", skewed, torch.tensor([]))) == pytest.approx(
        (rows + columns) / 2
    )


def test_divergence_of_retrieval_looks_both_ways() -> None:
    student, teacher = torch.zeros(2, 2), torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    one = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    found = score_divergence("retrieve", student, teacher)
    assert float(found) == pytest.approx(one / 2)


def test_pairs_are_the_images_that_have_captions() -> None:
    run = client_run(tap(), method(), captions=True)
    adapter = run.adapter
    assert isinstance(adapter, ComponentAdapter)
    adapter.held = COMPONENTS
    chosen = [*run.client.train]
    scores = task_scores(run.backbone, adapter, run.batch(chosen), "personal", "retrieve")
    assert scores.shape == (4, 4)
    captions = run.backbone.tokenize([example.caption or "" for example in chosen])
    expected = (
        inputs.LOGIT_SCALE
        * run.backbone.encode_image(run.batch(chosen).pixels)
        @ run.backbone.encode_text(captions).T
    )
    torch.testing.assert_close(scores, expected)
    without = client_run(tap(), method())
    nothing = task_scores(run.backbone, adapter, without.batch(chosen[:0]), "personal", "retrieve")
    assert nothing.shape == (0, 0)
    assert float(score_loss("retrieve", nothing, torch.tensor([]))) == 0.0


def prepared(
    monkeypatch: pytest.MonkeyPatch, federated: float, mine: float, *, last: float = 0.0
) -> ClientRun[Any]:
    """A client in its second participation, whose two held-out losses are these."""
    adapter = tap()
    disturb(adapter, "personal", 1)
    disturb(adapter, "federated", 2)
    state = TAPState(IMAGE_ONLY, participations=1, losses={"classify": last})
    run = client_run(adapter, method(), state=state)
    losses = iter([federated, mine])
    monkeypatch.setattr(run, "held_out", lambda loss: next(losses))
    monkeypatch.setattr(TAP, "_train_model", lambda *_: {"classify": mine + 1})
    return run


@pytest.mark.parametrize(
    ("federated", "mine", "replaced"),
    [(1.0, 1.02, True), (1.0, 1.005, False), (1.0, 1.01, False), (2.0, 1.0, False)],
)
def test_replacement_rule(
    monkeypatch: pytest.MonkeyPatch, federated: float, mine: float, replaced: bool
) -> None:
    """Margin 0.01: only where loss_federated + margin < loss_personal."""
    run = prepared(monkeypatch, federated, mine)
    adapter = run.adapter
    assert isinstance(adapter, ComponentAdapter)
    before = personal(adapter)
    method().train_client(run)
    (line,) = run.remarks["replacements"]
    assert line == {
        "task": "classify",
        "federated": federated,
        "personal": mine,
        "margin": 0.01,
        "replaced": replaced,
    }
    state = dict(adapter.named_parameters())
    for name in adapter.names("personal", IMAGE_ONLY):
        source = state[name.replace("personal", "federated", 1)] if replaced else before[name]
        assert torch.equal(state[name], source), name
    for name in adapter.names("personal", ["text/shared", "image/retrieve"]):
        assert torch.equal(state[name], before[name]), "not a component of this client"


def test_history_compares_running_training_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """3.0 in this training of the federated model, 2.5 in the personal one's last."""
    run = prepared(monkeypatch, 0.0, 2.0, last=2.5)
    method(history=True).train_client(run)
    (line,) = run.remarks["replacements"]
    assert (line["federated"], line["personal"], line["replaced"]) == (3.0, 2.5, False)
    assert run.state.losses == {"classify": 3.0}, "the personal model's, for the next time"


def test_the_first_participation_replaces_and_trains_both_models() -> None:
    adapter = tap()
    disturb(adapter, "federated", 2)
    run = client_run(adapter, method(), captions=True)
    before = adapter.tensors(*Scope)
    method().train_client(run)
    assert [line["replaced"] for line in run.remarks["replacements"]] == [True, True]
    assert [line["personal"] for line in run.remarks["replacements"]] == [None, None]
    assert [line["margin"] for line in run.remarks["replacements"]] == [0.01, 0.005]
    assert run.remarks["components"][0] == "image/shared"
    assert len(run.remarks["components"]) == 6
    assert run.state.participations == 1
    assert run.state.held == COMPONENTS
    state = dict(adapter.named_parameters())
    moved = [n for n in before if not torch.equal(state[n], before[n])]
    assert {n.split(".")[0] for n in moved} == {"federated", "personal"}
    mine = "personal.image.shared.0.q.B"
    assert not torch.equal(state[mine], state[mine.replace("personal", "federated")])


def test_an_image_only_client_trains_its_own_components_alone() -> None:
    adapter = tap()
    run = client_run(adapter, method())
    before = adapter.tensors(Scope.LOCAL, Scope.SHARED)
    method().train_client(run)
    state = dict(adapter.named_parameters())
    moved = {tuple(n.split(".")[1:3]) for n in before if not torch.equal(state[n], before[n])}
    assert moved == {("image", "shared"), ("image", "classify")}


def test_stage_two_teaches_the_personal_model_and_leaves_the_federated_one() -> None:
    own, adapter = method(distill_batches=3, accumulate=2, distill_lr=0.01), tap()
    disturb(adapter, "federated", 2)
    disturb(adapter, "personal", 3)
    state = TAPState(IMAGE_ONLY, participations=1)
    local = frozenset({Scope.LOCAL})
    run = client_run(adapter, own, scopes=local, round=None, state=state)
    before = adapter.tensors(*Scope)
    assert own.personalize(run) > 0
    after = dict(adapter.named_parameters())
    shared = adapter.tensors(Scope.SHARED)
    assert all(torch.equal(value, before[name]) for name, value in shared.items())
    names = adapter.names("personal", IMAGE_ONLY)
    assert all(not torch.equal(after[name], before[name]) for name in names)


def test_a_newcomer_starts_from_the_teacher() -> None:
    """After no steps at all its personal model would be the fine-tuned federated one."""
    own, adapter = method(distill_batches=1, distill_lr=1e-12), tap()
    disturb(adapter, "federated", 2)
    run = client_run(adapter, own, scopes=frozenset({Scope.LOCAL}), round=None)
    own.personalize(run)
    state = dict(adapter.named_parameters())
    for name in adapter.names("personal", IMAGE_ONLY):
        federated = state[name.replace("personal", "federated", 1)]
        torch.testing.assert_close(state[name], federated, atol=1e-9, rtol=0)


def test_the_teachers_word_counts_by_its_weight() -> None:
    """lambda = 0 is the personal loss; the rest is lambda * KL(teacher || student)."""
    losses = {}
    for weight in (0.0, 2.0):
        adapter = tap()
        disturb(adapter, "federated", 2)
        disturb(adapter, "personal", 3)
        adapter.held = IMAGE_ONLY
        batch = inputs.batch()
        teaching = method(distill_weight=weight)
        losses[weight] = teaching._distillation(tiny_backbone(), adapter, batch)
        own = teaching.loss(tiny_backbone(), adapter, batch)
    student = task_scores(tiny_backbone(), adapter, batch, "personal", "classify")
    teacher = task_scores(tiny_backbone(), adapter, batch, "federated", "classify")
    drift = score_divergence("classify", student, teacher)
    assert torch.equal(losses[0.0], own)
    torch.testing.assert_close(losses[2.0], own + 2 * drift)
    losses[2.0].backward()  # type: ignore[no-untyped-call]
    for name, value in adapter.named_parameters():
        assert (value.grad is not None) == (name in adapter.names("personal", IMAGE_ONLY)), name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": "all"}, "tasks must be auto or classify or one, not 'all'"),
        ({"modalities": "text"}, "modalities must be auto or image or both, not 'text'"),
        ({"retrieve_margin": -1.0}, "retrieve_margin must be 0 or more, not -1.0"),
        ({"accumulate": 0}, "accumulate must be 1 or more, not 0"),
        ({"distill_lr": 0.0}, "distill_lr must be above 0, not 0.0"),
    ],
)
def test_out_of_range(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TAPParameters(**given)
