"""What holds for every method there is: scopes, updates, loading, seeds, and whole runs."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from pfedmma_deploy.adapters.base import KEPT, Adapter
from pfedmma_deploy.config import Options, Scalar, TrainConfig
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.federated import session
from pfedmma_deploy.federated.evaluate import evaluate_run
from pfedmma_deploy.federated.personalize import fine_tune
from pfedmma_deploy.federated.privacy import Privacy
from pfedmma_deploy.federated.train import train
from pfedmma_deploy.methods.aggregation import AGGREGATORS
from pfedmma_deploy.methods.base import Method, Update
from pfedmma_deploy.methods.registry import METHODS, get_method, make_method, resolve_run
from pfedmma_deploy.store.checkpoint import Checkpoint
from pfedmma_deploy.store.run import Run
from pfedmma_deploy.types import ClientData, Example, Scope
from tests.federated.conftest import sites  # noqa: F401  # a fixture
from tests.federated.test_resume import contents
from tests.tinyclip import register, tiny_backbone

METHOD = pytest.mark.parametrize("name", list(METHODS))
CLIENTS = ("a", "b")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading the same backbone again and again would take longer than everything else."""
    torch.set_num_threads(1)
    monkeypatch.setattr(session, "load_backbone", lambda *_, **__: tiny_backbone())


def build(name: str, seed: int = 0) -> tuple[Method[Any, Any], Adapter]:
    method = make_method(name)
    return method, method.build(tiny_backbone(), torch.Generator().manual_seed(seed))


def client(name: str) -> ClientData:
    examples = tuple(Example(f"{name}{i}.png", i % 2, "train") for i in range(4))
    return ClientData(name, (0, 1), train=examples, val=(), test=())


def values(adapter: Adapter) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in adapter.named_parameters()}


@METHOD
def test_every_parameter_has_one_scope(name: str) -> None:
    _, adapter = build(name)
    scopes = adapter.scopes()
    assert scopes.keys() == dict(adapter.named_parameters()).keys()
    assert set(scopes.values()) <= set(Scope)
    assert not dict(adapter.named_buffers()), "a buffer would be neither stored nor sent"


@METHOD
def test_parameters_lie_beside_a_frozen_backbone(name: str) -> None:
    _, adapter = build(name)
    frozen = {id(value) for value in tiny_backbone().model.parameters()}
    assert not frozen & {id(value) for value in adapter.parameters()}


@METHOD
def test_the_seed_decides_the_initial_state(name: str) -> None:
    first, again, other = (values(build(name, seed)[1]) for seed in (3, 3, 4))
    assert all(torch.equal(first[n], again[n]) for n in first)
    drawn = [n for n in first if not torch.equal(first[n], other[n])]
    random = [n for n, value in first.items() if len(set(value.flatten().tolist())) > 2]
    assert bool(drawn) == bool(random), "what is drawn must come from the generator"


@METHOD
def test_an_update_holds_shared_parameters_and_nothing_else(name: str) -> None:
    method, adapter = build(name)
    sent = method.upload(adapter, client("a"))
    scopes = adapter.scopes()
    assert {scopes[n] for n in sent} <= {Scope.SHARED}
    own = dict(adapter.named_parameters())
    for n, value in sent.items():
        assert torch.equal(value, own[n])
        assert value.data_ptr() != own[n].data_ptr(), f"{n} is sent without being copied"


@METHOD
def test_aggregate_then_distribute(name: str) -> None:
    """Two clients of equal weight: what both sent comes back as the mean, under its name.

    pFedMoAP averages nothing: prompts travel as they are. What every client gets fits all the same.
    """
    method, adapter = build(name)
    server = method.start(adapter, CLIENTS)
    generator = torch.Generator().manual_seed(1)
    updates = []
    for one in CLIENTS:
        for value in adapter.parameters():
            value.data.normal_(0, 0.1, generator=generator)
        updates.append(Update(one, method.upload(adapter, client(one)), num_examples=4))
    state = method.aggregator().combine(updates, server)
    assert state.keys() >= server.keys(), "a round may not lose what the server held"
    for one in CLIENTS:
        sent = method.distribute(state, one)
        received = method.download(sent, adapter, client(one))
        for n in updates[0].shared if name != "pfedmoap" else ():
            mean = (updates[0].shared[n] + updates[1].shared[n]) / 2
            torch.testing.assert_close(received[n], mean)
        adapter.load({**adapter.tensors(*KEPT), **sent})
        found = values(adapter)
        assert all(torch.equal(found[n], value) for n, value in sent.items())


ROBUST = tuple(name for name in AGGREGATORS if name not in ("mean", "uniform-mean"))


@METHOD
def test_every_rule_combines_what_clients_send(name: str) -> None:
    """Five clients: what comes back fits the clients, by any rule and with noise."""
    method, adapter = build(name)
    clients = [f"c{i}" for i in range(5)]
    server = method.start(adapter, clients)
    generator = torch.Generator().manual_seed(1)
    updates = []
    for one in clients:
        for value in adapter.parameters():
            value.data.normal_(0, 0.1, generator=generator)
        updates.append(Update(one, method.upload(adapter, client(one)), num_examples=4))
    if name == "pfedmoap":
        for rule in AGGREGATORS:
            with pytest.raises(UsageError, match="combines nothing: leave out --aggregate"):
                method.aggregator(rule)
        return
    privacy = Privacy(clip=0.1, noise=1.0, clients=5, expected=5)
    states = [method.aggregator(rule).combine(updates, server) for rule in ROBUST]
    states.append(privacy.combine(updates, server, np.random.default_rng(0)))
    for state in states:
        assert state.keys() == server.keys()
        for one in clients:
            received = method.download(method.distribute(state, one), adapter, client(one))
            adapter.load({**adapter.tensors(*KEPT), **adapter.tensors(Scope.SHARED), **received})


@pytest.mark.parametrize("rule", [*ROBUST, "private"])
@pytest.mark.parametrize("name", ["pfedmma", "tap"])
def test_training_with_every_rule(
    name: str,
    rule: str,
    sites: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    config = replace(options(name, sites), rounds=1)
    if rule == "private":
        config = replace(config, dp_clip=0.1, dp_noise=1.0)
    else:
        config = replace(config, aggregate=rule)
    run = train(config, tmp_path / "run").run
    assert evaluate_run(run).personalized_mean.base is not None


@METHOD
def test_a_client_gets_what_it_needs_by_name_and_shape(name: str) -> None:
    """Its own part and the server's, together, are exactly the adapter."""
    method, adapter = build(name)
    sent = method.distribute(method.start(adapter, CLIENTS), "a")
    kept = adapter.tensors(*KEPT)
    assert kept.keys() | sent.keys() == adapter.scopes().keys()
    adapter.load({**kept, **sent})


@METHOD
def test_loading_is_strict(name: str) -> None:
    _, adapter = build(name)
    own = values(adapter)
    with pytest.raises(ValueError, match="parameter stray is not of this adapter"):
        adapter.load({**own, "stray": torch.zeros(1)})
    if not own:
        return
    first = next(iter(own))
    with pytest.raises(ValueError, match=f"parameter {first} is missing"):
        adapter.load({n: value for n, value in own.items() if n != first})
    with pytest.raises(ValueError, match=rf"parameter {first} has shape \(1, 2, 3\), expected"):
        adapter.load({**own, first: torch.zeros(1, 2, 3)})
    with pytest.raises(ValueError, match=f"parameter {first} is given twice"):
        adapter.load(own, {first: own[first]})


@METHOD
def test_nobody_knows_an_unknown_hyper_parameter(name: str) -> None:
    with pytest.raises(Exception, match=f"{name} has no hyper-parameter 'nonsense'"):
        get_method(name).configure({"nonsense": 1})


@METHOD
def test_what_people_read_is_there(name: str) -> None:
    method = get_method(name)
    assert method.name == name
    assert method.paper
    assert method.trained
    assert method.shared
    assert not method.export_blocker.endswith(".")


class Stop(BaseException):
    """A kill: nothing that handles errors may handle it."""


def options(name: str, folder: Path, **parameters: Scalar) -> TrainConfig:
    flags: dict[str, Any] = {
        "data": str(folder),
        "backbone": register(),
        "pretrained": "random",
        "method": name,
        "partition": "folders",
        "shots": 0,
        "rounds": 2,
        "local_epochs": 1,
        "batch_size": 4,
        "logit_scale": 20.0,
        "parameters": parameters,
    }
    return resolve_run(Options(given=flags, suggested={}))


def stop_after_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = Checkpoint.commit

    def commit_and_stop(self: Checkpoint, round: int, *rest: Any) -> None:
        commit(self, round, *rest)
        if round == 0:
            raise Stop

    monkeypatch.setattr(Checkpoint, "commit", commit_and_stop)


@METHOD
def test_two_rounds_and_the_same_two_with_a_kill_between(
    name: str,
    sites: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shorter = {"distill_batches": 4} if name == "tap" else {}
    config = options(name, sites, **shorter)
    run = train(config, tmp_path / "whole").run
    accuracy = evaluate_run(run).personalized_mean
    assert all(value is not None for value in accuracy.to_dict().values())
    lines = [json.loads(line) for line in (run.folder / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2]
    with monkeypatch.context() as patch:
        stop_after_a_round(patch)
        with pytest.raises(Stop):
            train(config, tmp_path / "cut")
    train(config, tmp_path / "cut", resume=True)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    require_personal(run, adapter_of(name).tensors(Scope.LOCAL).keys())


def adapter_of(name: str) -> Adapter:
    return build(name)[1]


def require_personal(run: Run, local: Collection[str]) -> None:
    """Personalization moves what is local and nothing else, or says that there is nothing."""
    if not local:
        with pytest.raises(UsageError, match=r"keeps nothing of its own|has nothing to train"):
            fine_tune(run, "clinic", epochs=1)
        return
    tuned = fine_tune(run, "clinic", epochs=1)
    before, after = tuned.before[0], tuned.after[0]
    moved = {n for n, v in after.items() if not torch.equal(v, before[n])}
    scopes = adapter_of(run.config.method).scopes()
    assert {scopes[n] for n in moved} == {Scope.LOCAL}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("pfedmma", {"towers": "image"}),
        ("pfedmma", {"towers": "text", "share": "all"}),
        ("pfedmma", {"share": "projection+down"}),
        ("fedavg-mma", {"towers": "image"}),
        ("plora", {"share": "A"}),
        ("plora", {"share": "AB"}),
        ("plora", {"share": "B-frozen-A"}),
        ("clip-adapter", {"share": "none"}),
        ("tap", {"history": True}),
        ("tap", {"modalities": "both"}),
    ],
)
def test_variants_run_and_keep_what_is_frozen(
    name: str,
    parameters: dict[str, Scalar],
    sites: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    config = replace(options(name, sites, **parameters), rounds=1)
    run = train(config, tmp_path / "run").run
    assert evaluate_run(run).personalized_mean.base is not None
    method = make_method(name, parameters)
    adapter = method.build(tiny_backbone(), torch.Generator().manual_seed(config.seed))
    shared = run.load_shared()
    assert shared.keys() == adapter.tensors(Scope.SHARED).keys()
    own = run.load_client("clinic").tensors
    for n, value in adapter.tensors(Scope.FROZEN).items():
        if name == "plora":
            assert torch.equal(own[n], value)
    trained = {**adapter.tensors(Scope.LOCAL), **adapter.tensors(Scope.SHARED)}
    assert any(not torch.equal(({**own, **shared})[n], value) for n, value in trained.items())


@METHOD
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_nearly_the_same(
    name: str,
    precision: Literal["bf16", "fp16"],
    sites: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Products in half precision; what is stored is fp32 and moved nearly as without."""
    ends = []
    # Adam turns the smallest difference of a small gradient into one of a whole step, on some
    # processors more than on others: SGD shows the gradients as they are.
    plain = replace(options(name, sites), rounds=1, optimizer="sgd")
    for config in (plain, replace(plain, autocast=precision)):
        run = train(config, tmp_path / config.autocast).run
        assert evaluate_run(run).personalized_mean.base is not None
        ends.append({**run.load_shared(), **run.load_client("clinic").tensors})
    start = values(adapter_of(name))
    moved = off = 0.0
    for n, value in ends[0].items():
        assert ends[1][n].dtype == torch.float32
        moved += float((value - start.get(n, value)).square().sum())
        off += float((ends[1][n] - value).square().sum())
    share = 0.2 if precision == "bf16" else 0.04
    assert moved > 0 or name == "zero-shot"
    assert off <= share**2 * moved
