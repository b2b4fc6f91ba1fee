"""Federations of real processes on small data, which tests disturb and compare with simulations."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from pfedmma_deploy.config import Options
from pfedmma_deploy.federated import train as training
from pfedmma_deploy.federated.engine import ClientReport, InProcessEngine
from pfedmma_deploy.fleet.rehearse import is_identical
from pfedmma_deploy.methods.base import Tensors
from pfedmma_deploy.methods.registry import resolve_run
from pfedmma_deploy.store.checkpoint import ClientState
from pfedmma_deploy.store.run import Run
from tests.federated.conftest import COLOURS, write_images
from tests.fleet.stages import run_command
from tests.tinyclip import register

SITES = {
    "site-a": ("cat", "dog", "ship", "tree"),
    "site-b": ("dog", "ship"),
    "site-c": ("cat", "tree"),
}
"""Sites and the classes that they have: two lack some."""
OPTIONS: Mapping[str, Any] = {
    "backbone": register(),
    "pretrained": "random",
    "rounds": 4,
    "local_epochs": 1,
    "batch_size": 4,
    "shots": 3,
    "lr": 0.05,
    "logit_scale": 20.0,
}
SOON = 120.0
"""Seconds within which anything that must happen has happened, also on a busy machine."""

# A process that has torch loaded is forked for each command: loading it takes longer than a
# federation of this size.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.fleet.stages"])


class Play:
    """One federation: a folder, the server `fleet`, and sites, each a process of its own."""

    def __init__(
        self,
        folder: Path,
        host: str = "127.0.0.1",
        sites: Mapping[str, Sequence[str]] = SITES,
        **options: Any,
    ) -> None:
        """Write the sites' images; `options` are the run's, beside `OPTIONS`."""
        self.folder = folder
        self.sites = list(sites)
        self.options = {**OPTIONS, **options}
        self.address = f"{host}:{_free_port(host)}"
        self.processes: dict[str, BaseProcess] = {}
        for place, (site, names) in enumerate(sites.items()):
            self.write_site(site, place, names)

    @property
    def fleet(self) -> Path:
        """The operator's folder."""
        return self.folder / "fleet"

    @property
    def data(self) -> Path:
        """Folder of the sites' images."""
        return self.folder / "data"

    def write_site(self, site: str, place: int, names: Sequence[str]) -> None:
        """A site's images; another `place` gives other ones."""
        for split, count in (("train", 4 + place), ("val", 2), ("test", 2)):
            for number, name in enumerate(names):
                seed = 1000 * place + 10 * number + count
                write_images(self.data / site / split / name, count, COLOURS[name], seed)

    # The commands.

    def new(self, *more: str) -> None:
        """`pfedmma fleet new`."""
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in self.options.items()]
        config = self.folder / "run.toml"
        config.write_text("".join(lines))
        base = ["--sites", ",".join(self.sites), "--config", str(config), "--address", self.address]
        self.run("fleet", "new", str(self.fleet), *base, *more)

    def serve(self, *more: str) -> None:
        """`pfedmma fleet serve`, in the background."""
        self.start("fleet", "fleet", "serve", str(self.fleet), "--listen", self.address, *more)

    def join(
        self, site: str, *, out: Path | None = None, namespace: str | None = None, name: str = ""
    ) -> None:
        """`pfedmma fleet join`, in the background."""
        invitation = self.fleet / "invitations" / f"{site}.invite"
        folders = ["--data", str(self.data / site), "--out", str(out or self.site_folder(site))]
        command = ["fleet", "join", str(invitation), *folders, "--yes"]
        self.start(name or site, *command, namespace=namespace)

    def add(self, site: str) -> None:
        """`pfedmma fleet add`, until the server knows it."""
        self.run("fleet", "add", str(self.fleet), site)
        what = f"the server invites {site}"
        self.wait(what, lambda: self._seen(site, "never") is None)

    def start_all(self) -> None:
        """Server and sites."""
        self.serve()
        for site in self.sites:
            self.join(site)

    def start(self, name: str, *command: str, namespace: str | None = None) -> None:
        """A command in the background; a second one of a name continues the first's log."""
        target = (list(command), self.folder, name, namespace)
        process = _CONTEXT.Process(target=run_command, args=target, daemon=True)
        process.start()
        self.processes[name] = process

    def run(self, *command: str, code: int = 0) -> str:
        """A command to its end, which must have this exit code; returns what it said."""
        name = f"command-{len(self.processes)}"
        self.start(name, *command)
        self.end(name, code)
        return self.log(name)

    # What is seen of them.

    def site_folder(self, site: str) -> Path:
        """Where a site's run is."""
        return self.folder / "sites" / site

    def log(self, name: str) -> str:
        """All that a process said, and those of its name before."""
        return (self.folder / f"{name}.log").read_text()

    def stages(self, name: str) -> list[str]:
        """The stages that a process reached, and those of its name before."""
        path = self.folder / f"{name}.stages"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """The server's lines."""
        return Run.open(self.fleet / "run").rounds

    @property
    def counted(self) -> list[list[str]]:
        """Sites whose update counted, by round."""
        return [record["clients"] for record in self.rounds]

    @property
    def status(self) -> dict[str, Any]:
        """`status.json`, with the sites by name."""
        values: dict[str, Any] = json.loads((self.fleet / "status.json").read_text())
        values["sites"] = {site["id"]: site for site in values["sites"]}
        return values

    def wait(self, what: str, is_so: Callable[[], object], seconds: float = SOON) -> None:
        """Until it is so; fails with everybody's last words where it is not in time."""
        deadline = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > deadline:
                pytest.fail(f"not within {seconds:.0f} s: {what}\n{self._last_words()}")
            time.sleep(0.05)

    def wait_stage(self, name: str, stage: str, times: int = 1, seconds: float = SOON) -> None:
        """Until a process has reached a stage so often."""
        text = f"{name} at {stage!r}"
        self.wait(text, lambda: self.stages(name).count(stage) >= times, seconds)

    def wait_stopped(self, name: str) -> None:
        """Until a process stands still."""
        self.wait(f"{name} stopped", lambda: self._state(name) == "T")

    def end(self, name: str, code: int = 0, seconds: float = SOON) -> None:
        """Until a process is over, with this exit code."""
        process = self.processes[name]
        self.wait(f"the end of {name}", lambda: process.exitcode is not None, seconds)
        assert process.exitcode == code, f"{name}: {process.exitcode}\n{self._last_words()}"

    def end_all(self) -> None:
        """Until server and sites are over, all with 0."""
        for name in ("fleet", *self.sites):
            self.end(name)

    # What is done to them.

    def order(self, name: str, stage: str, what: str) -> None:
        """What a process is to do to itself at a stage: see `stages`."""
        folder = self.folder / f"{name}.orders"
        folder.mkdir(exist_ok=True)
        (folder / stage).write_text(what)

    def release(self, name: str, stage: str) -> None:
        """End a HOLD."""
        (self.folder / f"{name}.orders" / stage).unlink()

    def send(self, name: str, what: signal.Signals) -> None:
        """A signal."""
        pid = self.processes[name].pid
        assert pid is not None
        os.kill(pid, what)

    def kill(self, name: str) -> None:
        """kill -9, also where it was killed already."""
        process = self.processes[name]
        process.kill()
        process.join(SOON)
        assert process.exitcode == -signal.SIGKILL

    def close(self) -> None:
        """No process outlives its test."""
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.join(SOON)

    def _seen(self, site: str, unknown: str) -> object:
        return self.status["sites"].get(site, {}).get("seen_seconds_ago", unknown)

    def _state(self, name: str) -> str:
        text = Path(f"/proc/{self.processes[name].pid}/stat").read_text()
        return text.rpartition(") ")[2][0]

    def _last_words(self) -> str:
        words = []
        for name, process in self.processes.items():
            if not name.startswith("command") and (self.folder / f"{name}.log").exists():
                words.append(f"--- {name} ({process.exitcode}), {self.stages(name)[-3:]}")
                words.append(self.log(name)[-1500:])
        return "\n".join(words)

    # The same in one process.

    def simulate(self, engine: type[InProcessEngine] | None = None) -> Run:
        """`pfedmma train` on the sites' folders, in this process, with the same absences."""
        given = {
            **self.options,
            "data": str(self.data),
            "partition": "folders",
            "client_batching": False,
        }
        given.setdefault("classes", "all")
        config = resolve_run(Options(given=given, suggested={}))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "InProcessEngine", engine or absent(self.counted))
            return training.train(config, self.folder / "simulation").run

    def require_same(self, simulation: Run) -> None:
        """Shared tensors, adapters and losses have the simulation's bits."""
        runs = {site: Run.open(self.site_folder(site)) for site in self.sites}
        assert is_identical(Run.open(self.fleet / "run"), runs, simulation)
        assert [r["loss"] for r in self.rounds] == [r["loss"] for r in simulation.rounds]


def absent(counted: Sequence[Sequence[str]], lost: Mapping[str, int] | None = None) -> Any:
    """An engine in which each round has these clients only.

    Args:
        counted: clients by round.
        lost: by client, the round, from 1, in which it starts from the initial state again.
    """

    class _Absent(InProcessEngine):
        def run_round(
            self, round: int, clients: Sequence[str], server: Tensors
        ) -> Iterator[ClientReport]:
            again = [id for id, when in (lost or {}).items() if when == round + 1]
            stored = self.checkpoint
            self.checkpoint = _Forgetful(stored, again)
            yield from super().run_round(round, counted[round], server)
            self.checkpoint = stored

    return _Absent


@dataclass
class _Forgetful:
    """States of which some are lost."""

    states: Any
    lost: Sequence[str]

    def load_client(self, client: str) -> ClientState | None:
        return None if client in self.lost else self.states.load_client(client)

    def stage_client(self, client: str, round: int, state: ClientState) -> None:
        self.states.stage_client(client, round, state)


def _free_port(host: str) -> int:
    with socket.socket() as found:
        found.bind((host, 0))
        port: int = found.getsockname()[1]
        return port
