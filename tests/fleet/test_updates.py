"""Bad updates are refused by name of the site, and the others count."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pfedmma_deploy.federated.engine import ClientReport
from pfedmma_deploy.fleet.checks import far_updates
from pfedmma_deploy.fleet.engine import STRIKES
from pfedmma_deploy.fleet.messages import Note, Parcel
from pfedmma_deploy.fleet.server import ServeResult
from pfedmma_deploy.fleet.status import FleetStatus
from pfedmma_deploy.methods.base import Tensors, Update
from pfedmma_deploy.store.files import tensor_bytes
from tests.fleet.scripted import (
    PATIENCE,
    Answer,
    Scripts,
    Served,
    add,
    figures,
    honest,
    make_fleet,
    options,
    wait_for,
)


def changed(change: Callable[[Tensors], Tensors]) -> Answer:
    """An honest update, but for its tensors."""
    return lambda note: Note("train", figures(note), change(add(1)(note))).pack()


def raw(tensors: bytes) -> Answer:
    """An honest header, and these bytes in place of tensors."""
    return lambda note: Parcel(json.dumps({"kind": "train", **figures(note)}), tensors)


def header(text: str) -> Answer:
    """This header, and honest tensors."""
    return lambda note: Parcel(text, tensor_bytes(add(1)(note)))


def safetensors(head: bytes, data: bytes = b"") -> bytes:
    """A safetensors file of this header."""
    return struct.pack("<Q", len(head)) + head + data


def one_tensor(dtype: str, shape: list[int], size: int) -> bytes:
    """A safetensors file whose header says this of its one tensor."""
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    return safetensors(json.dumps({"pair.0.bias": entry}).encode(), b"\1" * size)


def many_tensors(count: int) -> bytes:
    """A valid file of `count` empty tensors."""
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return safetensors(json.dumps({f"t{i}": entry for i in range(count)}).encode())


def with_bias(value: float) -> Answer:
    """One number of one tensor is this."""

    def change(tensors: Tensors) -> Tensors:
        bias = tensors["pair.0.bias"].clone()
        bias[0] = value
        return {**tensors, "pair.0.bias": bias}

    return changed(change)


def replaced(bias: torch.Tensor) -> Answer:
    return changed(lambda tensors: {**tensors, "pair.0.bias": bias})


FIGURES = '"round": 0, "num_examples": 1, "loss": 0.5'
BAD: dict[str, tuple[Answer, str]] = {
    "nan": (with_bias(float("nan")), "tensor pair.0.bias holds values that are not finite"),
    "infinity": (with_bias(float("inf")), "tensor pair.0.bias holds values that are not finite"),
    "shape": (
        replaced(torch.zeros(5)),
        "sent pair.0.bias as float32 [5], expected float32 [4]",
    ),
    "float64": (
        replaced(torch.zeros(4).double()),
        "sent pair.0.bias as float64 [4], expected float32 [4]",
    ),
    "int64": (replaced(torch.zeros(4).long()), "sent pair.0.bias as int64 [4]"),
    "float8": (raw(one_tensor("F8_E4M3", [4], 4)), "sent no tensor pair.0.weight"),
    "float4": (raw(one_tensor("F4", [8], 4)), "its tensors is not a safetensors file"),
    "missing": (
        changed(lambda tensors: {"pair.0.bias": tensors["pair.0.bias"]}),
        "sent no tensor pair.0.weight",
    ),
    "extra": (
        changed(lambda tensors: {**tensors, "local": torch.zeros(1)}),
        "sent a tensor 'local' that was not announced",
    ),
    "none": (raw(b""), "sent no tensor pair.0.bias"),
    "far": (honest(100), "its update is 50 times as large as the round's median"),
    "no-images": (honest(1, num_examples=0), "says that it trained on 0 images"),
    "minus-images": (honest(1, num_examples=-3), "says that it trained on -3 images"),
    "huge-images": (honest(1, num_examples=10**9), "says that it trained on 1000000000 images"),
    "bool-images": (honest(1, num_examples=True), "says that it trained on True images"),
    "float-images": (honest(1, num_examples=1.0), "says that it trained on 1.0 images"),
    "text-images": (honest(1, num_examples="1"), "says that it trained on '1' images"),
    "other-round": (honest(1, round=1), "answered for round 1, was asked for 0"),
    "nan-loss": (honest(1, loss=float("nan")), "reports a loss of nan, expected a finite number"),
    "no-loss": (honest(1, loss=None), "reports a loss of None"),
    "huge-loss": (honest(1, loss=10**400), "reports a loss of 1000"),
    "accuracy": (honest(1, val_accuracy=300), "reports an accuracy of 300, expected 0 to 100"),
    "remarks": (
        honest(1, remarks={"text": "x" * 5000}),
        "sent remarks that are no table of 4,000 characters at most",
    ),
    "nan-remarks": (
        honest(1, remarks={"x": float("nan")}),
        "sent remarks that are no table of 4,000 characters at most",
    ),
    "deep-remarks": (
        header(f'{{"kind": "train", {FIGURES}, "remarks": {{"x": {"[" * 400}{"]" * 400}}}}}'),
        "a header that is not JSON",
    ),
    "deeper": (header("[" * 30_000), "a header that is not JSON"),
    "half-character": (
        header(f'{{"kind": "train", {FIGURES}, "remarks": {{"x": "\\ud800"}}}}'),
        "a header that is not JSON",
    ),
    "failed-half-character": (
        header('{"kind": "failed", "reason": "\\ud800"}'),
        "a header that is not JSON",
    ),
    "no-json": (header("{"), "a header that is not JSON"),
    "long-header": (header("x" * 64_001), "a header of 64,001 characters, at most 64,000"),
    "list": (header("[]"), "a message of kind None, expected one of hello, train, finish, failed"),
    "other-kind": (header('{"kind": "run", "code": "1"}'), "a message of kind 'run'"),
    "hello-again": (header('{"kind": "hello"}'), "answered for round None, was asked for 0"),
    "no-safetensors": (raw(b"PK\3\4 no safetensors"), "tensors with a header of"),
    "short": (raw(b"\1"), "its tensors is not a safetensors file"),
    "lying-length": (
        raw(struct.pack("<Q", 2**63) + b"{}"),
        "tensors with a header of 9,223,372,036,854,775,808 bytes, at most 1,000,000",
    ),
    "deep-tensors": (
        raw(safetensors(b'{"a":' * 2000 + b"1" + b"}" * 2000)),
        "its tensors is not a safetensors file",
    ),
    "huge-shape": (raw(one_tensor("F32", [0, 2**62, 2**62], 0)), "tensors that cannot be read"),
    "200000-tensors": (raw(many_tensors(200_000)), "bytes, at most"),
    "10-mb-header": (raw(safetensors(b" " * 10_000_000)), "bytes, at most"),
}
"""One site each: what it answers, and what is said of it."""
HONEST = {"a": honest(1), "b": honest(2), "c": honest(6, num_examples=2)}
"""(1 * 1 + 1 * 2 + 2 * 6) / 4 = 3.75."""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[ServeResult, FleetStatus, Tensors]:
    """Three honest sites and all the others, in one round; with what the honest were sent."""
    answers = {**HONEST, **{id: answer for id, (answer, _) in BAD.items()}}
    fleet = make_fleet(tmp_path_factory.mktemp("wards") / "wards", list(answers))
    with Served(fleet) as served, Scripts(served, answers) as sites:
        result = served.end()
        start = sites["a"].tasks[0].tensors
    return result, served.status(), start


def test_the_honest_count(outcome: tuple[ServeResult, FleetStatus, Tensors]) -> None:
    result, status, start = outcome
    (record,) = result.run.rounds
    assert record["clients"] == ["a", "b", "c"]
    for name, value in result.run.load_shared().items():
        torch.testing.assert_close(value, start[name] + 3.75)
    for id in HONEST:
        assert status.sites[id].refused == 0 and status.sites[id].rounds == 1


@pytest.mark.parametrize("id", sorted(BAD))
def test_the_others_are_refused_by_name(
    id: str, outcome: tuple[ServeResult, FleetStatus, Tensors]
) -> None:
    result, status, _ = outcome
    (record,) = result.run.rounds
    reason = record["refused"][id]
    assert BAD[id][1] in reason
    assert len(reason) <= 300
    assert (status.sites[id].refused, status.sites[id].rounds) == (1, 0)
    assert status.sites[id].reason == reason
    json.dumps(record, allow_nan=False)


def test_a_site_refused_three_times_is_set_aside_until_it_is_invited_again(tmp_path: Path) -> None:
    """Rounds 1 to 3 refuse it, 4 is without it, and 5 has it again."""
    fleet = make_fleet(tmp_path / "wards", ["bad", "good"], options(rounds=5))
    is_back = threading.Event()

    def patient(note: Note) -> Parcel | None:
        if note.values["round"] == 3:
            assert is_back.wait(PATIENCE)
        return honest(1)(note)

    answers = {"bad": honest(1, loss=None), "good": patient}
    with Served(fleet) as served, Scripts(served, answers) as sites:
        wait_for(lambda: len(sites["good"].tasks) == 4)
        wait_for(lambda: served.status().sites["bad"].state == "set aside")
        assert served.status().sites["bad"].refused == STRIKES
        again, _ = fleet.invite("bad", 3)
        wait_for(lambda: served.status().sites["bad"].seen_seconds_ago is None)
        with Scripts(served, {"bad": honest(1)}, again):
            wait_for(lambda: served.status().sites["bad"].seen_seconds_ago is not None)
            is_back.set()
            result = served.end()
    counted = [record["clients"] for record in result.run.rounds]
    assert counted == [["good"], ["good"], ["good"], ["good"], ["bad", "good"]]
    assert [sorted(record.get("refused", {})) for record in result.run.rounds] == [
        ["bad"],
        ["bad"],
        ["bad"],
        [],
        [],
    ]


def test_a_federation_whose_sites_are_all_set_aside_waits_for_another(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "wards", ["bad"], options(rounds=4))
    with Served(fleet) as served:
        with Scripts(served, {"bad": honest(1, loss=None)}):
            wait_for(lambda: "set aside" in served.status().remark)
            assert served.status().remark == (
                "1 of 1 sites are set aside, and 1 must take part: pfedmma fleet add lets one in "
                "again"
            )
        again, _ = fleet.invite("bad", 3)
        wait_for(lambda: served.status().sites["bad"].seen_seconds_ago is None)
        with Scripts(served, {"bad": honest(1)}, again):
            result = served.end()
    assert [record["clients"] for record in result.run.rounds] == [[], [], [], ["bad"]]


def test_one_reply_twice_counts_once(tmp_path: Path) -> None:
    """1 and 3 with equal weights: 2, however often the first is sent."""
    fleet = make_fleet(tmp_path / "wards", ["once", "twice"])
    answers = {"once": honest(1), "twice": honest(3)}
    with Served(fleet) as served, Scripts(served, answers) as sites:
        sites["twice"].repeat = 3
        result = served.end()
        start = sites["once"].tasks[0].tensors
    for name, value in result.run.load_shared().items():
        torch.testing.assert_close(value, start[name] + 2)
    assert "refused" not in result.run.rounds[0]


# The checks by themselves.


def report(site: str, *numbers: float) -> ClientReport:
    return ClientReport(Update(site, {"w": torch.tensor(numbers)}, 1), 0.5, None, 0)


def test_what_is_far_from_the_others() -> None:
    """Norms 5 (3, 4), 10 and 51 from 0; the median is 10, and ten times that is not passed."""
    sent = {id: {"w": torch.zeros(2)} for id in "abc"}
    reports = {"a": report("a", 3, 4), "b": report("b", 6, 8), "c": report("c", 0, 51)}
    assert far_updates(reports, sent) == {}
    reports["c"] = report("c", 0, 101)
    assert far_updates(reports, sent) == {
        "c": "its update is 10 times as large as the round's median"
    }


def test_two_updates_are_not_far_from_each_other() -> None:
    """Nobody can say which of the two is the odd one."""
    sent = {id: {"w": torch.zeros(2)} for id in "ab"}
    assert far_updates({"a": report("a", 1, 0), "b": report("b", 1000, 0)}, sent) == {}


def test_an_update_beside_ones_that_do_not_move() -> None:
    sent = {id: {"w": torch.zeros(2)} for id in "abc"}
    reports = {"a": report("a", 0, 0), "b": report("b", 0, 0), "c": report("c", 1, 0)}
    assert far_updates(reports, sent) == {"c": "its update moves, and the others' do not"}
