"""A federation on loopback whose sites are scripts: real messages, made-up updates, no training.

`Served` runs `serve` in a thread; a `Script` is a site that answers as a test says.
"""

from __future__ import annotations

import contextlib
import stat
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

from pfedmma_deploy.backbone.loading import load_backbone
from pfedmma_deploy.config import PartitionConfig, TrainConfig
from pfedmma_deploy.errors import FleetError
from pfedmma_deploy.fleet.folder import Fleet, Invitation
from pfedmma_deploy.fleet.line import Line, RefusedError
from pfedmma_deploy.fleet.messages import Note, Parcel, unpack
from pfedmma_deploy.fleet.server import ServeResult, serve
from pfedmma_deploy.fleet.status import STATUS_FILE, FleetStatus
from tests.tinyclip import register

PATIENCE = 60.0
"""Seconds after which a test gives up, on a machine however busy."""
LIMIT = 1_000_000
"""Bytes that a script reads at once."""
NAMES = ("cat", "dog")
Answer = Callable[[Note], Parcel | None]
"""What a site answers to a task; None: nothing."""


def options(rounds: int = 1, **changes: Any) -> TrainConfig:
    """A run of a model so small that only messages take time."""
    values: dict[str, Any] = {
        "data": "the sites",
        "backbone": register(),
        "pretrained": "random",
        "partition": PartitionConfig(scheme="folders", num_shots=0, classes="all"),
        "rounds": rounds,
        "parameters": {"bottleneck_dim": 4, "scale": 0.1},
        "logit_scale": 20.0,
    }
    return TrainConfig(**{**values, **changes})


def make_fleet(
    folder: Path,
    sites: Sequence[str],
    config: TrainConfig | None = None,
    class_names: Sequence[str] | None = NAMES,
    quorum: int = 1,
    round_limit: float = PATIENCE,
) -> Fleet:
    """A federation on disk, with an invitation of each site."""
    config = config or options()
    backbone = load_backbone(config.backbone, config.pretrained, device="cpu")
    known = {
        "name": backbone.name,
        "pretrained": backbone.pretrained,
        "fingerprint": backbone.fingerprint,
    }
    fleet = Fleet.create(
        folder,
        "127.0.0.1:8443",
        config,
        known,
        class_names,
        quorum,
        round_limit,
    )
    for site in sites:
        fleet, _ = fleet.invite(site, 0)
    return fleet


def invitation(fleet: Fleet, site: str) -> Invitation:
    return Invitation.read(fleet.folder / "invitations" / f"{site}.invite")


def mode(path: Path) -> int:
    """Who may read and write a file, as `chmod` takes it."""
    return stat.S_IMODE(path.stat().st_mode)


def line(fleet: Fleet, site: str, port: int, limit: int = LIMIT) -> Line:
    """A site's end of the connection, not yet connected."""
    read = invitation(fleet, site)
    return Line(f"127.0.0.1:{port}", read.authority, read.private_key, limit)


def wait_for(is_so: Callable[[], bool]) -> None:
    """Until it is so; fails after a while."""
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


class Stopped(Exception):  # noqa: N818
    """A test had enough."""


class Served:
    """`serve` in a thread, until its end or the block's."""

    def __init__(self, fleet: Fleet, **given: Any) -> None:
        self.fleet = fleet
        self.port = 0
        self.result: ServeResult | None = None
        self.error: BaseException | None = None
        self._given = given
        self._is_open, self._enough = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._is_open.wait(PATIENCE):
            raise AssertionError(f"the server did not start: {self.error!r}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._enough.set()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        try:
            self.result = serve(
                self.fleet,
                host="127.0.0.1",
                port=0,
                watch=self._watch,
                listening=self._listening,
                **self._given,
            )
        except Stopped:
            pass
        except BaseException as failure:
            self.error = failure
        finally:
            self._is_open.set()

    def _listening(self, port: int) -> None:
        self.port = port
        self._is_open.set()

    def _watch(self, status: FleetStatus) -> None:
        # The last look, when all is over, must not hide what it ended with.
        if self._enough.is_set() and status.stage not in ("complete", "stopped"):
            raise Stopped

    def end(self) -> ServeResult:
        """Wait for the end of the run."""
        self._thread.join(PATIENCE)
        if self.error is not None:
            raise AssertionError("the server ended with an error") from self.error
        assert self.result is not None, "the run did not end"
        return self.result

    def status(self) -> FleetStatus:
        """As `pfedmma fleet status` reads it."""
        wait_for(lambda: (self.fleet.folder / STATUS_FILE).exists())
        found = FleetStatus.read(self.fleet.folder)
        assert found is not None
        return found


def add(amount: float) -> Callable[[Note], dict[str, Any]]:
    """An update: what was sent, plus this much in every number."""
    return lambda note: {name: value + amount for name, value in note.tensors.items()}


def figures(note: Note, **changes: Any) -> dict[str, Any]:
    """What goes with an honest update: one image, loss 0.5, accuracy 50 %."""
    values = {"round": note.values["round"], "num_examples": 1, "loss": 0.5, "val_accuracy": 50.0}
    return {**values, **changes}


def honest(amount: float, **changes: Any) -> Answer:
    """Adds `amount` to every number."""
    return lambda note: Note("train", figures(note, **changes), add(amount)(note)).pack()


@dataclass
class Script(threading.Thread):
    """A site that answers `train` as told, and everything else as it should."""

    fleet: Fleet
    id: str
    port: int
    answer: Answer
    hello: dict[str, Any] = field(default_factory=dict)
    """What it says of itself otherwise than others."""
    repeat: int = 1
    """How often it sends each answer."""
    tasks: list[Note] = field(default_factory=list)
    error: FleetError | None = None

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self.line = line(self.fleet, self.id, self.port)
        self._enough = threading.Event()
        self._pause = 0.05

    def __hash__(self) -> int:
        return id(self)

    def stop(self) -> None:
        self._enough.set()
        self.join(PATIENCE)

    def run(self) -> None:
        beating = threading.Thread(target=self._beat, daemon=True)
        try:
            self.line.connect()
            beating.start()
            while not self._enough.is_set() and self._work():
                pass
        except FleetError as error:
            self.error = error
        finally:
            self._enough.set()
            if beating.is_alive():
                beating.join(PATIENCE)
            self.line.close()

    def _work(self) -> bool:
        """Answer what there is; False after the last message."""
        found = self.line.fetch()
        if found is None:
            # Many scripts that ask all the time would have no time left for answers.
            time.sleep(self._pause)
            self._pause = min(0.5, self._pause * 1.3)
            return True
        self._pause = 0.05
        message, parcel = found
        note = unpack(parcel)
        reply = self._reply(note)
        for _ in range(self.repeat if reply is not None else 0):
            assert reply is not None
            try:
                self.line.reply(message, reply)
            except RefusedError as error:
                self.error = error
        return note.kind != "finish"

    def _beat(self) -> None:
        while not self._enough.wait(2):
            with contextlib.suppress(FleetError):
                self.line.beat()

    def _reply(self, note: Note) -> Parcel | None:
        if note.kind == "hello":
            values = {
                "class_names": list(NAMES),
                "images": 1,
                "fingerprint": self.fleet.backbone["fingerprint"],
            }
            return Note("hello", {**values, **self.hello}).pack()
        self.tasks.append(note)
        return self.answer(note) if note.kind == "train" else Note("finish").pack()


class Scripts:
    """Several sites at once, each answering as told; none outlives the block."""

    def __init__(
        self, served: Served, answers: dict[str, Answer], fleet: Fleet | None = None
    ) -> None:
        """`fleet` where it changed since it is served."""
        known = fleet or served.fleet
        self.sites = {id: Script(known, id, served.port, each) for id, each in answers.items()}

    def __enter__(self) -> dict[str, Script]:
        for site in self.sites.values():
            site.start()
        return self.sites

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for site in self.sites.values():
            site.stop()


def photos(folder: Path, seed: int, names: Sequence[str] = NAMES, count: int = 4) -> Path:
    """A site's images: noise of 16 by 20 pixels, under names that occur nowhere else."""
    rng = np.random.default_rng(seed)
    for split, number in (("train", count), ("val", 2), ("test", 2)):
        for name in names:
            target = folder / split / name
            target.mkdir(parents=True)
            for i in range(number):
                pixels = rng.integers(0, 256, (20, 16, 3), np.uint8)
                Image.fromarray(pixels).save(target / f"patient-{seed}-{split}-{name}-{i}.png")
    return folder
