"""Replicas on Ray, where it is installed: the same answers, and none lost when one is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from pfedmma_deploy.cli.main import run
from pfedmma_deploy.errors import UsageError
from tests.serve.calling import QUICKSTART, files, photo


@pytest.mark.filterwarnings("default")  # Ray's own
def test_the_args_of_a_configuration() -> None:
    pytest.importorskip("ray")
    from pfedmma_deploy.serve.on_ray import application

    with pytest.raises(UsageError, match="args of the application are not right: bundle: Field"):
        application({})
    with pytest.raises(UsageError, match=r"not right: gpu: Extra inputs are not permitted\."):
        application({"bundle": "/bundle", "gpu": 1})
    with pytest.raises(UsageError, match=r"name a file of keys in args\.keys"):
        application({"bundle": "/bundle"})
    assert application({"bundle": "/bundle", "keys": "/keys.toml", "most": 4}) is not None


@pytest.mark.parametrize("replicas", ["0", "2-", "x", "1-2-3"])
def test_numbers_of_replicas(replicas: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["serve", "--model", str(QUICKSTART), "--ray", "--replicas", replicas]
    assert run(asked) == 2
    assert "--replicas is a number, or a least and a most" in capsys.readouterr().err


def pids(name: str) -> list[int]:
    done = subprocess.run(["pgrep", "-f", name], capture_output=True, text=True, check=False)
    return [int(line) for line in done.stdout.split()]


@pytest.mark.slow
def test_a_killed_replica_loses_no_answer_of_who_asks_again(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "pfedmma_deploy.cli", "serve", "--json", "--port", "8129"]
    command += ["--model", str(QUICKSTART), "--device", "cpu", "--ray", "--replicas", "2"]
    before = set(pids("ray::ServeReplica:pfedmma"))
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        process.stdout.close()
        ours = set(pids("ray::ServeReplica:pfedmma")) - before
        assert len(ours) == 2
        answers = []
        with httpx.Client(base_url=url, timeout=60) as caller:
            for number in range(40):
                if number == 10:
                    os.kill(ours.pop(), signal.SIGKILL)
                for _ in range(30):
                    asked = caller.post("/v1/classify", files=files(photo()), data={"client": "3"})
                    if asked.status_code == 200:
                        break
                    time.sleep(0.5)
                answers.append(asked.json())
        assert len(answers) == 40
        assert all(answer["predictions"] == answers[0]["predictions"] for answer in answers)
    finally:
        process.terminate()
        process.wait(60)
