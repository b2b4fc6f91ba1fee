"""Every method trains at sites as it does in one process: with the same bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pfedmma_deploy.config import Options, TrainConfig
from pfedmma_deploy.federated import session
from pfedmma_deploy.federated.evaluate import evaluate_run
from pfedmma_deploy.federated.train import train
from pfedmma_deploy.fleet import engine, server
from pfedmma_deploy.fleet.engine import Desk
from pfedmma_deploy.fleet.folder import Fleet, Invitation
from pfedmma_deploy.fleet.gate import Contact
from pfedmma_deploy.fleet.messages import Parcel
from pfedmma_deploy.fleet.rehearse import is_identical
from pfedmma_deploy.fleet.site import Site, prepare
from pfedmma_deploy.methods.registry import METHODS, resolve_run
from pfedmma_deploy.progress import Silent
from pfedmma_deploy.store.run import Run
from tests.federated.conftest import sites  # noqa: F401  # a fixture
from tests.tinyclip import register, tiny_backbone

NAMES = ("clinic", "harbour")


class DirectLink:
    """`Link` without a network: a site answers as soon as it is asked."""

    def __init__(self) -> None:
        self.contacts: dict[str, Contact] = {}
        self.sites: dict[str, Site] = {}
        self._answers: dict[str, Parcel] = {}

    def allow(self, site: str, public_key: str) -> None:
        self.contacts.setdefault(site, Contact(0, b"", last_seen=0.0))

    def is_here(self, site: str) -> bool:
        return True

    def send(self, site: str, parcel: Parcel) -> str:
        ticket = f"{site}-{len(self._answers)}"
        self._answers[ticket] = self.sites[site]._answer(parcel)
        return ticket

    def answer(self, ticket: str) -> Parcel:
        return self._answers[ticket]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(session, "load_backbone", lambda *_, **__: tiny_backbone())
    monkeypatch.setattr(engine, "POLL", 0.0)


def options(method: str, data: Path, **more: Any) -> TrainConfig:
    given = {
        "data": str(data),
        "backbone": register(),
        "pretrained": "random",
        "method": method,
        "partition": "folders",
        "shots": 3,
        "rounds": 2,
        "local_epochs": 1,
        "batch_size": 4,
        "logit_scale": 20.0,
        "client_batching": False,
        **more,
    }
    return resolve_run(Options(given=given, suggested={}))


def federate(
    config: TrainConfig,
    data: Path,
    folder: Path,
    arrange: Callable[[Fleet], Fleet] = lambda fleet: fleet,
) -> tuple[Run, dict[str, Run]]:
    """The server's run and the sites', after a whole training."""
    backbone = tiny_backbone()
    known = {
        "name": backbone.name,
        "pretrained": backbone.pretrained,
        "fingerprint": backbone.fingerprint,
    }
    without_data = replace(config, data="the sites")
    fleet = Fleet.create(folder / "fleet", "localhost:1", without_data, known, None, 1, 30.0)
    link = DirectLink()
    for name in NAMES:
        fleet, file = fleet.invite(name, 0)
        link.sites[name] = prepare(Invitation.read(file), str(data / name), folder / "sites" / name)
    desk = Desk(arrange(fleet), link)  # type: ignore[arg-type]  # stands in for it
    found = server._train(desk, None, server._session(fleet), None, Silent())
    return found.run, {name: Run.open(folder / "sites" / name) for name in NAMES}


@pytest.mark.parametrize("method", list(METHODS))
def test_the_same_bits_as_in_one_process(
    method: str,
    sites: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    config = options(method, sites)
    simulated = train(config, tmp_path / "alone").run
    shared, own = federate(config, sites, tmp_path)
    assert is_identical(shared, own, simulated)
    assert [r["loss"] for r in shared.rounds] == [r["loss"] for r in simulated.rounds]
    assert shared.client_ids == []
    for name, run in own.items():
        there = evaluate_run(run).personalized[name]
        assert there.local == evaluate_run(simulated).personalized[name].local
