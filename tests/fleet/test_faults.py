"""Faults of sites, server and network: the result is that of a simulation with the same absences.

Every process is real, and stopped, killed or cut off where it hurts (`tests.fleet.stages`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from pfedmma_deploy.store.run import Run
from tests.fleet.play import Play, absent

Make = Callable[..., Play]
ALL = ["site-a", "site-b", "site-c"]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes a federation that ends with the test."""
    torch.set_num_threads(1)
    plays: list[Play] = []

    def new(*arguments: str, **options: Any) -> Play:
        play = Play(tmp_path, **options)
        plays.append(play)
        play.new(*arguments)
        return play

    yield new
    for play in plays:
        play.close()


def test_three_sites_have_the_bits_of_one_process(make: Make) -> None:
    play = make()
    play.start_all()
    play.end_all()
    assert play.counted == [ALL] * 4
    play.require_same(play.simulate())


# The same result.


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tap", "plora", "pfedmoap"])
def test_methods_with_states_have_the_bits_of_one_process(make: Make, method: str) -> None:
    play = make(method=method)
    play.start_all()
    play.end_all()
    assert play.counted == [ALL] * 4
    play.require_same(play.simulate())


@pytest.mark.slow
def test_the_operator_names_the_classes(make: Make) -> None:
    play = make("--class-names", "cat,dog,ship,tree", classes="base-novel")
    play.start_all()
    play.end_all()
    assert Run.open(play.fleet / "run").manifest["base"] == ["cat", "dog"]
    play.require_same(play.simulate())


# Sites that die, are late or come back.


def hold_until_back(play: Play, round: int, site: str) -> None:
    """Let `round` begin once the site is there again, so that it can take part."""
    play.wait_stage("fleet", f"starting {round}")
    play.wait(f"{site} back", lambda: play.status["sites"][site]["state"] in ("here", "answered"))
    play.release("fleet", f"starting {round}")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["training 2", "trained 2", "pushing 2"])
def test_a_site_killed_in_a_round_is_back_in_a_later_one(make: Make, stage: str) -> None:
    play = make("--round-limit", "60")
    play.order("site-b", stage, "KILL")
    play.order("fleet", "starting 3", "HOLD")
    play.start_all()
    play.end("site-b", -signal.SIGKILL)
    play.join("site-b")
    hold_until_back(play, 3, "site-b")
    play.end_all()
    assert play.counted == [ALL, ["site-a", "site-c"], ALL, ALL]
    assert play.rounds[1]["absent"] == {"site-b": "was not heard of for 20 s"}
    play.require_same(play.simulate())


@pytest.mark.slow
def test_a_site_that_is_too_late_is_passed_over(make: Make) -> None:
    play = make("--round-limit", "12")
    play.order("site-c", "training 2", "STOP")
    play.order("fleet", "starting 3", "HOLD")
    play.start_all()
    play.wait_stopped("site-c")
    play.wait_stage("fleet", "committed 2")
    play.send("site-c", signal.SIGCONT)
    hold_until_back(play, 3, "site-c")
    play.end_all()
    assert play.counted == [ALL, ["site-a", "site-b"], ALL, ALL]
    assert play.rounds[1]["absent"] == {"site-c": "did not answer within 12 s"}
    # It finished its work, was not heard, and did none of it twice.
    assert [s for s in play.stages("site-c") if s.startswith("training")] == [
        f"training {round}" for round in (1, 2, 3, 4)
    ]
    play.require_same(play.simulate())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tap", "plora"])
def test_a_late_answer_leaves_no_trace_in_a_methods_state(make: Make, method: str) -> None:
    play = make("--round-limit", "12", method=method)
    play.order("site-c", "trained 2", "STOP")
    play.order("fleet", "starting 3", "HOLD")
    play.start_all()
    play.wait_stage("fleet", "committed 2")
    play.send("site-c", signal.SIGCONT)
    hold_until_back(play, 3, "site-c")
    play.end_all()
    assert play.counted == [ALL, ["site-a", "site-b"], ALL, ALL]
    play.require_same(play.simulate())


@dataclass(frozen=True)
class Cable:
    """The way from a network namespace to this machine."""

    namespace: str
    host: str
    """This machine's address, seen from there."""
    device: str

    def cut(self) -> None:
        run_ip("link", "set", self.device, "down")

    def mend(self) -> None:
        run_ip("link", "set", self.device, "up")


def run_ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@pytest.fixture
def cable() -> Iterator[Cable]:
    name, number = f"pfedmma-{os.getpid()}", os.getpid() % 250
    here, there, network = f"pf{os.getpid()}", f"pg{os.getpid()}", f"10.213.{number}"
    inside = ("-n", name)
    try:
        run_ip("netns", "add", name)
    except OSError as error:
        pytest.skip(f"a network namespace cannot be made here: {error}")
    try:
        run_ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        run_ip("address", "add", f"{network}.1/24", "dev", here)
        run_ip(*inside, "address", "add", f"{network}.2/24", "dev", there)
        run_ip("link", "set", here, "up")
        run_ip(*inside, "link", "set", there, "up")
        yield Cable(name, f"{network}.1", here)
    finally:
        run_ip("netns", "delete", name)


@pytest.mark.slow
def test_a_site_whose_cable_is_cut_is_back_in_a_later_round(make: Make, cable: Cable) -> None:
    play = make("--round-limit", "60", host=cable.host)
    play.order("site-b", "training 2", "STOP")
    play.order("fleet", "starting 3", "HOLD")
    play.serve()
    for site in play.sites:
        play.join(site, namespace=cable.namespace if site == "site-b" else None)
    play.wait_stopped("site-b")
    cable.cut()
    play.send("site-b", signal.SIGCONT)
    play.wait_stage("fleet", "committed 2")
    # Its work is done, and nobody hears of it.
    assert play.stages("site-b")[-1] in ("answering 2", "connecting")
    cable.mend()
    hold_until_back(play, 3, "site-b")
    play.end_all()
    assert play.counted == [ALL, ["site-a", "site-c"], ALL, ALL]
    assert play.rounds[1]["absent"] == {"site-b": "was not heard of for 20 s"}
    assert play.stages("site-b").count("training 2") == 1
    play.require_same(play.simulate())


# A server that dies.

MOMENTS = ["listening", "starting 1", "heard 2", "committing 2", "writing 2", "committed 2"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [*MOMENTS, "committed 4", "handing out"])
def test_a_server_killed_at_any_moment_goes_on_with_the_same_bytes(make: Make, stage: str) -> None:
    play = make()
    play.order("fleet", stage, "KILL")
    play.start_all()
    play.end("fleet", -signal.SIGKILL)
    play.serve()
    play.end_all()
    assert play.counted == [ALL] * 4
    play.require_same(play.simulate())


@pytest.mark.slow
def test_a_server_killed_while_some_have_their_result(make: Make) -> None:
    """Those that have it are gone by then, and nobody waits for them."""
    play = make("--round-limit", "600")
    play.order("site-b", "finishing", "STOP")
    play.start_all()
    play.wait_stopped("site-b")
    for site in ("site-a", "site-c"):
        play.end(site)
    play.wait("results noted", lambda: play.status["sites"]["site-c"]["state"] == "done")
    play.kill("fleet")
    play.serve()
    play.wait_stage("fleet", "handing out", times=2)
    play.send("site-b", signal.SIGCONT)
    play.end_all()
    play.require_same(play.simulate())
    # All have theirs: a third start has nothing to wait for.
    play.serve()
    play.end("fleet")


@pytest.mark.slow
def test_a_site_killed_with_its_result_needs_nobody(make: Make) -> None:
    play = make("--round-limit", "5")
    play.order("site-b", "finished", "KILL")
    play.start_all()
    for name in ("fleet", "site-a", "site-c"):
        play.end(name)
    play.join("site-b")
    play.end("site-b")
    play.require_same(play.simulate())


# A machine that stands still.


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage",
    ["connecting", "waiting", "training 2", "trained 2", "answering 2", "pushing 2"],
)
def test_a_site_that_stands_still_for_half_a_minute(make: Make, stage: str) -> None:
    play = make("--round-limit", "60")
    play.order("site-a", stage, "STOP")
    play.order("fleet", "starting 3", "HOLD")
    play.start_all()
    play.wait_stopped("site-a")
    time.sleep(30)
    play.send("site-a", signal.SIGCONT)
    hold_until_back(play, 3, "site-a")
    play.end_all()
    trained = [s for s in play.stages("site-a") if s.startswith("training")]
    assert len(trained) == len(set(trained)), "work was started twice"
    assert play.counted[2:] == [ALL, ALL]
    play.require_same(play.simulate())


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["finishing", "finished", "answering finish"])
def test_a_site_that_stands_still_with_its_result(make: Make, stage: str) -> None:
    play = make("--round-limit", "60")
    play.order("site-a", stage, "STOP")
    play.start_all()
    play.wait_stopped("site-a")
    time.sleep(30)
    play.send("site-a", signal.SIGCONT)
    play.end_all()
    assert play.status["sites"]["site-a"]["state"] == "done"
    assert play.counted == [ALL] * 4
    play.require_same(play.simulate())


@pytest.mark.slow
def test_a_server_that_stands_still_misses_nobody(make: Make) -> None:
    play = make("--round-limit", "20")
    play.order("fleet", "heard 2", "STOP")
    play.start_all()
    play.wait_stopped("fleet")
    time.sleep(30)
    play.send("fleet", signal.SIGCONT)
    play.end_all()
    assert play.counted == [ALL] * 4
    play.require_same(play.simulate())


# Too few answers.


def test_a_quorum_that_no_round_can_reach_is_refused(make: Make) -> None:
    play = make("--quorum", "2", clients_per_round=0.6)
    command = ["--sites", "a,b,c", "--config", str(play.folder / "run.toml"), "--quorum", "3"]
    words = play.run("fleet", "new", str(play.folder / "other"), *command, code=2)
    assert "--quorum from 1 to the number of sites that train in a round (2)" in words


@pytest.mark.slow
def test_a_round_below_the_quorum_changes_nothing(make: Make) -> None:
    play = make("--quorum", "3", "--round-limit", "12")
    play.order("site-c", "training 2", "STOP")
    play.order("fleet", "committed 1", "STOP")
    play.start_all()
    play.wait_stopped("fleet")
    before = (play.fleet / "run/checkpoint/shared.r0.safetensors").read_bytes()
    play.order("fleet", "starting 3", "HOLD")
    play.send("fleet", signal.SIGCONT)
    play.wait_stage("fleet", "starting 3")
    assert (play.fleet / "run/checkpoint/shared.r1.safetensors").read_bytes() == before
    play.send("site-c", signal.SIGCONT)
    hold_until_back(play, 3, "site-c")
    play.end_all()
    assert play.counted == [ALL, [], ALL, ALL]
    assert play.rounds[1]["not_counted"] == "2 answers, the quorum is 3"
    assert play.rounds[1]["absent"] == {"site-c": "did not answer within 12 s"}
    play.require_same(play.simulate())


@pytest.mark.slow
def test_with_too_few_sites_left_the_rest_of_the_rounds_wait(make: Make) -> None:
    play = make("--quorum", "3")
    play.order("fleet", "starting 2", "HOLD")
    play.start_all()
    play.wait_stage("fleet", "starting 2")
    play.run("fleet", "remove", str(play.fleet), "site-c")
    play.end("site-c", 1)
    play.release("fleet", "starting 2")
    waits = "2 of 2 sites would train, the quorum is 3"
    play.wait("the server waits", lambda: play.status["remark"] == waits)
    play.add("site-c")
    play.join("site-c")
    play.end_all()
    assert play.counted == [ALL, [], ALL, ALL]
    play.require_same(play.simulate())


# Sites that come and go.


@pytest.mark.slow
def test_a_site_invited_again_before_it_said_who_it_is(make: Make) -> None:
    play = make()
    play.order("site-c", "answering hello", "STOP")
    play.start_all()
    play.wait_stopped("site-c")
    play.add("site-c")
    play.kill("site-c")
    play.join("site-c")
    play.end_all()
    assert play.counted == [ALL] * 4
    play.require_same(play.simulate())


@pytest.mark.slow
def test_a_site_that_is_added_takes_part_from_the_next_round_on(make: Make) -> None:
    play = make("--class-names", "cat,dog,ship,tree")
    play.order("fleet", "starting 2", "HOLD")
    play.start_all()
    play.wait_stage("fleet", "starting 2")
    play.write_site("site-d", 3, ("dog", "tree"))
    play.add("site-d")
    play.sites.append("site-d")
    play.join("site-d")
    hold_until_back(play, 2, "site-d")
    play.end_all()
    assert play.counted == [ALL, ALL, [*ALL, "site-d"], [*ALL, "site-d"]]
    play.require_same(play.simulate())


@pytest.mark.slow
def test_adding_a_site_in_the_middle_of_a_commit(make: Make) -> None:
    """Whoever looks at the checkpoint from outside must leave it alone."""
    play = make()
    play.order("fleet", "writing 2", "STOP")
    play.start_all()
    play.wait_stopped("fleet")
    play.run("fleet", "add", str(play.fleet), "site-d")
    play.run("fleet", "remove", str(play.fleet), "site-d")
    # The next commit would mend it: the server has no other chance than this one.
    play.order("fleet", "committed 2", "KILL")
    play.send("fleet", signal.SIGCONT)
    play.end("fleet", -signal.SIGKILL)
    play.serve()
    play.end_all()
    play.require_same(play.simulate())


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["waiting", "training 2"])
def test_a_removed_site_is_refused_and_the_others_go_on(make: Make, stage: str) -> None:
    play = make("--quorum", "2")
    if stage == "waiting":
        play.order("fleet", "starting 2", "HOLD")
    else:
        play.order("site-c", stage, "STOP")
    play.start_all()
    if stage == "waiting":
        play.wait_stage("fleet", "starting 2")
    else:
        play.wait_stopped("site-c")
    play.run("fleet", "remove", str(play.fleet), "site-c")
    if stage == "waiting":
        play.end("site-c", 1, seconds=30)
        play.release("fleet", "starting 2")
    else:
        play.wait_stage("fleet", "committed 2")
        play.send("site-c", signal.SIGCONT)
        play.end("site-c", 1, seconds=30)
    play.sites.remove("site-c")
    play.end_all()
    assert "the server does not know this invitation (any more)" in play.log("site-c")
    assert play.counted == [ALL, *[["site-a", "site-b"]] * 3]
    if stage != "waiting":
        assert play.rounds[1]["absent"] == {"site-c": "was removed by the operator"}
    play.require_same(play.simulate())


@pytest.mark.slow
def test_a_site_that_lost_its_folder_goes_on_from_the_initial_state(make: Make) -> None:
    play = make("--round-limit", "60")
    play.order("site-b", "training 3", "KILL")
    play.order("fleet", "starting 4", "HOLD")
    play.start_all()
    play.end("site-b", -signal.SIGKILL)
    play.site_folder("site-b").rename(play.folder / "lost")
    play.join("site-b")
    hold_until_back(play, 4, "site-b")
    play.end_all()
    assert play.counted == [ALL, ALL, ["site-a", "site-c"], ALL]
    play.require_same(play.simulate(absent(play.counted, {"site-b": 4})))


# Ctrl-C.


def offered(play: Play, name: str) -> list[str]:
    """The words of the command that a stopped process says to continue with."""
    line = [line for line in play.log(name).splitlines() if line.startswith("Stopped.")][-1]
    return line.partition("pfedmma ")[2].split()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["waiting", "training 2"])
def test_a_site_stopped_by_its_user_continues_by_the_command_it_names(
    make: Make, stage: str
) -> None:
    play = make("--round-limit", "60")
    play.order("fleet", "starting 3", "HOLD")
    play.order("site-b", stage, "INT")
    play.start_all()
    play.end("site-b", 130)
    began = time.monotonic()
    play.start("site-b", *offered(play, "site-b"), "--yes")
    hold_until_back(play, 3, "site-b")
    assert time.monotonic() - began < 15
    play.end_all()
    assert play.counted[2:] == [ALL, ALL]
    play.require_same(play.simulate())


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["starting 1", "heard 2", "handing out"])
def test_a_server_stopped_by_its_operator_continues_by_the_command_it_names(
    make: Make, stage: str
) -> None:
    play = make()
    play.order("fleet", stage, "INT")
    play.start_all()
    play.end("fleet", 130)
    assert play.status["stage"] == "stopped"
    play.start("fleet", *offered(play, "fleet"))
    play.end_all()
    assert play.counted == [ALL] * 4
    play.require_same(play.simulate())
