"""A run that is stopped at any moment and resumed has the bytes of one that never stopped."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pfedmma_deploy.config import TrainConfig
from pfedmma_deploy.errors import StoreError, UsageError
from pfedmma_deploy.federated.train import train
from pfedmma_deploy.store import files
from pfedmma_deploy.store.run import Run

Rename = Callable[[Path, Path], Path]

CHILD = """
import json, sys, torch
from pathlib import Path
from pfedmma_deploy.config import config_from_mapping
from pfedmma_deploy.federated.train import train
from tests.tinyclip import register
torch.set_num_threads(1)
register()
out = Path(sys.argv[1])
train(config_from_mapping(json.loads(sys.argv[2])), out, resume=(out / "manifest.json").exists())
"""


MEASURED = dict.fromkeys(("seconds", "seconds_by_phase", "peak_memory", "energy"))
"""Of a round's line, what no two runs have in common."""


class Stop(BaseException):
    """A kill: nothing that handles errors may handle it."""


def contents(folder: Path) -> dict[str, object]:
    """Every file of a run, without clock times."""
    found: dict[str, object] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        found[name] = path.read_bytes()
        if name == "rounds.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{**line, **MEASURED} for line in lines]
        if name == "checkpoint/state.json":
            state = json.loads(path.read_text())
            found[name] = {**state, "record": {**state["record"], **MEASURED}}
        if name == "manifest.json":
            manifest = json.loads(path.read_text())
            manifest["files"].pop("rounds.jsonl", None)
            found[name] = {**manifest, "created": None}
    return found


@pytest.fixture
def whole(config: TrainConfig, tmp_path: Path) -> dict[str, object]:
    train(config, tmp_path / "whole")
    return contents(tmp_path / "whole")


def test_same_seed_same_bytes(
    config: TrainConfig, tmp_path: Path, whole: dict[str, object]
) -> None:
    train(config, tmp_path / "again")
    assert contents(tmp_path / "again") == whole
    train(replace(config, seed=1), tmp_path / "other")
    shared = "shared/shared.safetensors"
    assert contents(tmp_path / "other")[shared] != whole[shared]


def test_a_stop_at_every_single_write(
    config: TrainConfig, tmp_path: Path, whole: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after each file is renamed into place, from the first to the last."""
    rename = Path.replace
    for write in range(100):
        for after in (False, True):
            out = tmp_path / f"stop-{write}-{after}"
            monkeypatch.setattr(Path, "replace", stop_at(write, after, rename))
            try:
                train(config, out)
            except Stop:
                monkeypatch.setattr(Path, "replace", rename)
                train(config, out, resume=(out / "manifest.json").exists())
                assert contents(out) == whole, f"stopped at write {write}, {after=}"
            else:
                assert write > 15, "there are not so few writes in a run"
                return


def stop_at(write: int, after: bool, rename: Rename) -> Rename:
    """A rename that stops the program at the given call, before or after doing its work."""
    calls = itertools.count()

    def replace_or_stop(self: Path, target: Path) -> Path:
        number = next(calls)
        if number == write and not after:
            raise Stop
        moved = rename(self, target)
        if number == write:
            raise Stop
        return moved

    return replace_or_stop


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is a POSIX signal")
def test_real_kills(config: TrainConfig, tmp_path: Path) -> None:
    longer = replace(config, rounds=8)
    train(longer, tmp_path / "whole")
    out, kills = tmp_path / "killed", 0
    command = [sys.executable, "-c", CHILD, str(out), json.dumps(longer.to_dict())]
    for delay in (0.02, 0.1, None):
        child = subprocess.Popen(command)
        if delay is None:
            assert child.wait() == 0
            break
        before = rounds_done(out)
        while rounds_done(out) <= before and child.poll() is None:
            time.sleep(0.01)
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
    assert kills >= 2, "the child was too fast to be killed"
    assert contents(out) == contents(tmp_path / "whole")


def rounds_done(out: Path) -> int:
    path = out / "checkpoint" / "state.json"
    return -1 if not path.exists() else int(json.loads(path.read_text())["round"])


def test_a_finished_run_is_left_alone(
    config: TrainConfig, tmp_path: Path, whole: dict[str, object]
) -> None:
    train(config, tmp_path / "whole", resume=True)
    assert contents(tmp_path / "whole") == whole


def test_a_folder_that_is_taken_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="already holds something that is not a run"):
        train(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_resume_keeps_the_options(config: TrainConfig, tmp_path: Path) -> None:
    train(replace(config, rounds=1), tmp_path / "run")
    with pytest.raises(UsageError, match=r"was started with lr = 0.05, not 0.1"):
        train(replace(config, rounds=1, lr=0.1), tmp_path / "run", resume=True)


def test_resume_without_a_run(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"holds no run \(no manifest.json\)"):
        train(config, tmp_path / "nothing", resume=True)


@pytest.mark.parametrize(
    "file", ["clients/clinic/adapter.safetensors", "shared/shared.safetensors", "splits.json"]
)
def test_damage_is_noticed(config: TrainConfig, tmp_path: Path, file: str) -> None:
    run = train(replace(config, rounds=1), tmp_path / "run").run
    path = run.folder / file
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    opened = Run.open(run.folder)
    with pytest.raises(StoreError, match="is damaged or was changed"):
        _ = (opened.load_client("clinic"), opened.load_shared(), opened.splits)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    import torch

    data = files.tensor_bytes({"w": torch.tensor([1.0, float("nan")])})
    with pytest.raises(StoreError, match="tensor w holds values that are not finite"):
        files.parse_tensors(data, tmp_path / "x.safetensors")
    with pytest.raises(StoreError, match="is not a safetensors file"):
        files.parse_tensors(b"\x00" * 40, tmp_path / "x.safetensors")
