"""A `pfedmma` command in a process of its own that says how far it is, and obeys orders there.

Real processes are disturbed at the very moment a test is about: one that reaches a stage writes a
line to `<folder>/<name>.stages` and looks for an order `<folder>/<name>.orders/<stage>`:

    STOP, KILL, INT    the process sends itself that signal, as a test could from outside
    HOLD               it goes on with what it does while waiting, until the order is gone

Stages of a site: `connecting`, `waiting`, `training R`, `trained R`, `answering R`, `pushing R`,
`finishing`, `finished`; of a server: `listening`, `starting R`, `heard R`, `committing R`,
`writing R` (the shared tensors are written and do not count yet), `committed R`, `handing out`,
`handed out`. R counts from 1.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Here and not in each process: they are forked from one that has all of it loaded.
from flwr.supernode.fleet_http_client import FleetHttpClient

from pfedmma_deploy.cli import main
from pfedmma_deploy.federated.engine import InProcessEngine
from pfedmma_deploy.fleet import engine, server, site
from pfedmma_deploy.fleet.line import Line
from pfedmma_deploy.fleet.link import Link
from pfedmma_deploy.fleet.messages import unpack
from pfedmma_deploy.store import checkpoint
from pfedmma_deploy.store.files import write_bytes
from tests.tinyclip import register

_NEW_NETWORK = 0x40000000


@dataclass
class Stages:
    """Where a process is."""

    folder: Path
    name: str
    last: str = ""

    def reach(self, stage: str, idle: Callable[[], object] = lambda: time.sleep(0.05)) -> None:
        """Say it, once where it comes again and again, and do what is ordered there."""
        if stage != self.last:
            with (self.folder / f"{self.name}.stages").open("a") as file:
                file.write(f"{stage}\n")
        self.last = stage
        order = self.folder / f"{self.name}.orders" / stage
        if not order.exists():
            return
        what = order.read_text()
        if what == "HOLD":
            while order.exists():
                idle()
            return
        order.unlink()
        os.kill(os.getpid(), signal.Signals[f"SIG{what}"])


def run_command(
    arguments: Sequence[str], folder: Path, name: str, namespace: str | None = None
) -> None:
    """Run `pfedmma` with `arguments`; its words are in `<name>.log`. For a process of its own."""
    log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    if namespace is not None:
        _enter(namespace)
    # What one machine has computed must not help another.
    os.environ["PFEDMMA_CACHE"] = str(folder / "caches" / name)
    register()
    _say_stages(Stages(folder, name))
    sys.argv = ["pfedmma", *arguments]
    main()


def _enter(namespace: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/run/netns", namespace).open() as file:
        if libc.setns(file.fileno(), _NEW_NETWORK):
            raise OSError(ctypes.get_errno(), f"network namespace {namespace}")


def _say_stages(stages: Stages) -> None:
    patch = pytest.MonkeyPatch().setattr  # for good: the process ends with the command
    _say_of_site(stages, patch)
    _say_of_server(stages, patch)


def _say_of_site(stages: Stages, patch: Callable[..., None]) -> None:
    connect, fetch, reply = Line.connect, Line.fetch, Line.reply
    push, train = FleetHttpClient.PushObject, InProcessEngine.train_client
    finish, answering = site.Site._finish, ""

    def said_connect(self: Line) -> None:
        stages.reach("connecting")
        connect(self)

    def said_fetch(self: Line) -> Any:
        found = fetch(self)
        if found is None:
            stages.reach("waiting")
        return found

    def said_train(self: InProcessEngine, round: int, *rest: Any) -> Any:
        stages.reach(f"training {round + 1}")
        report = train(self, round, *rest)
        stages.reach(f"trained {round + 1}")
        return report

    def said_reply(self: Line, message: Any, parcel: Any) -> bool:
        nonlocal answering
        note = unpack(parcel)
        answering = str(note.values["round"] + 1) if note.kind == "train" else note.kind
        stages.reach(f"answering {answering}")
        return reply(self, message, parcel)

    def said_push(self: Any, request: Any) -> Any:
        stages.reach(f"pushing {answering}")
        return push(self, request)

    def said_finish(self: site.Site, note: Any) -> Any:
        stages.reach("finishing")
        found = finish(self, note)
        stages.reach("finished")
        return found

    patch(Line, "connect", said_connect)
    patch(Line, "fetch", said_fetch)
    patch(Line, "reply", said_reply)
    patch(FleetHttpClient, "PushObject", said_push)
    patch(InProcessEngine, "train_client", said_train)
    patch(site.Site, "_finish", said_finish)


def _say_of_server(stages: Stages, patch: Callable[..., None]) -> None:
    listening, run_round = Link.listening, engine.GridEngine.run_round
    answer, commit = engine.GridEngine._answer, checkpoint.Checkpoint.commit
    write, hand_out = write_bytes, server._hand_out

    @contextlib.contextmanager
    def said_listening(self: Link, *rest: Any) -> Iterator[int]:
        with listening(self, *rest) as port:
            stages.reach("listening")
            yield port

    def said_round(self: engine.GridEngine, round: int, *rest: Any) -> Iterator[Any]:
        stages.reach(f"starting {round + 1}", self.desk.look)
        yield from run_round(self, round, *rest)

    def said_answer(self: engine.GridEngine, round: int, *rest: Any) -> Any:
        found = answer(self, round, *rest)
        if found is not None:
            stages.reach(f"heard {round + 1}")
        return found

    def said_commit(self: checkpoint.Checkpoint, round: int, *rest: Any) -> None:
        stages.reach(f"committing {round + 1}")
        commit(self, round, *rest)
        stages.reach(f"committed {round + 1}")

    def said_write(path: Path, data: bytes) -> str:
        if path.name == "state.json" and stages.last.startswith("committing"):
            stages.reach(stages.last.replace("committing", "writing"))
        return write(path, data)

    def said_hand_out(desk: engine.Desk, *rest: Any) -> None:
        stages.reach("handing out", desk.look)
        hand_out(desk, *rest)
        stages.reach("handed out")

    patch(Link, "listening", said_listening)
    patch(engine.GridEngine, "run_round", said_round)
    patch(engine.GridEngine, "_answer", said_answer)
    patch(checkpoint.Checkpoint, "commit", said_commit)
    patch(checkpoint, "write_bytes", said_write)
    patch(server, "_hand_out", said_hand_out)
