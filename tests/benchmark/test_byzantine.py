"""The table of dishonest clients: attacks by hand, honest scores as everywhere, resumption."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import byzantine_table
from benchmarks.byzantine_table import (
    ATTACKS,
    DISHONEST,
    RULES,
    flip_sign,
    scale_up,
    send_noise,
    table_rows,
    train_attacked,
)
from pfedmma_deploy.benchmark.report import Row
from pfedmma_deploy.config import PartitionConfig, TrainConfig
from pfedmma_deploy.evaluation.accuracy import mean_accuracy
from pfedmma_deploy.federated.evaluate import evaluate_run
from pfedmma_deploy.federated.session import open_session
from pfedmma_deploy.federated.train import train
from tests.federated.conftest import sites  # noqa: F401  # a fixture
from tests.tinyclip import register


def test_attacks_by_hand() -> None:
    server, own, rng = torch.tensor([1.0]), torch.tensor([1.5]), np.random.default_rng(0)
    assert flip_sign(server, own, rng).tolist() == [-4]
    assert scale_up(server, own, rng).tolist() == [51]
    drawn = np.random.default_rng(0).standard_normal(1)
    assert send_noise(server, own, rng).tolist() == pytest.approx((1 + drawn).tolist())


@pytest.fixture
def config(sites: Path) -> TrainConfig:  # noqa: F811
    """Four clients that hold much the same, one of them honest."""
    return TrainConfig(
        data=str(sites / "harbour"),
        backbone=register(),
        pretrained="random",
        partition=PartitionConfig(
            scheme="dirichlet", dirichlet_beta=1e3, clients=DISHONEST + 1, classes="all"
        ),
        rounds=2,
        local_epochs=1,
        batch_size=4,
        parameters={"bottleneck_dim": 4, "scale": 0.1},
        lr=0.05,
        logit_scale=20.0,
    )


def test_without_an_attack_it_is_plain_training(config: TrainConfig, tmp_path: Path) -> None:
    found = train_attacked(open_session(config), None, tmp_path / "attacked")
    run = train(config, tmp_path / "plain").run
    honest = list(evaluate_run(run, strength=1.0).personalized.values())[:-DISHONEST]
    assert found == mean_accuracy(honest)


def test_attackers_change_what_the_server_gets(config: TrainConfig, tmp_path: Path) -> None:
    """The same federation from the same seed ends its round in another shared state."""
    states = []
    for name, attack in (("truth", None), ("noise", send_noise)):
        train_attacked(open_session(replace(config, rounds=1)), attack, tmp_path / name)
        (path,) = (tmp_path / name / "checkpoint").glob("shared.r0.safetensors")
        states.append(path.read_bytes())
    assert states[0] != states[1]


def rows_of(accuracies: Sequence[tuple[str, str, float | None]]) -> list[Row]:
    rows: list[Row] = []
    for attack, rule, value in accuracies:
        rows.append({"attack": attack, "rule": rule, "local": value, "base": 50.0, "novel": None})
    return rows


def test_the_table_by_hand() -> None:
    """Two seeds; a cell one of whose trainings ended early has no figure."""
    rows = rows_of(
        [
            ("none", "mean", 80.0),
            ("none", "mean", 90.0),
            ("noise", "krum", 70.0),
            ("scaled", "mean", 70.0),
            ("scaled", "mean", None),
        ]
    )
    cells = {(cell["attack"], cell["rule"]): cell for cell in table_rows(rows)}
    assert len(cells) == len(ATTACKS) * len(RULES)
    assert (cells["none", "mean"]["local"], cells["none", "mean"]["lost_local"]) == (85, 0)
    assert (cells["noise", "krum"]["local"], cells["noise", "krum"]["lost_local"]) == (70, 15)
    assert (cells["noise", "krum"]["lost_base"], cells["noise", "krum"]["lost_novel"]) == (0, None)
    assert (cells["scaled", "mean"]["local"], cells["scaled", "mean"]["lost_local"]) == (None, None)


def test_only_what_is_missing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, str]] = []

    def measure(config: TrainConfig, attack: str) -> Row:
        if len(ran) == 7:
            raise KeyboardInterrupt
        assert config.aggregate is not None
        ran.append((attack, config.aggregate))
        about = {"method": config.method, "seed": config.seed, "rule": config.aggregate}
        return {**about, "attack": attack, "local": 80.0, "base": 70.0, "novel": 60.0}

    out = tmp_path / "byzantine.json"
    command = ["byzantine_table", "--methods", "pfedmma", "--out", str(out)]
    monkeypatch.setattr("sys.argv", command)
    monkeypatch.setattr(byzantine_table, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        byzantine_table.main()
    assert len(json.loads(out.read_text())["rows"]) == 7
    first, ran[:] = list(ran), []
    with pytest.raises(KeyboardInterrupt):
        byzantine_table.main()
    second, ran[:] = list(ran), []
    byzantine_table.main()
    assert len({*first, *second, *ran}) == len(ATTACKS) * len(RULES)
    assert "| none | krum | 80.0 | 70.0 | 60.0 |" in out.with_suffix(".md").read_text()
