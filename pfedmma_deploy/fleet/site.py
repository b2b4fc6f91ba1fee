"""`pfedmma fleet join`: one site, from its images to its own model.

The folder that it leaves is a run of one client, for `personalize`, `evaluate`, `export`, `predict`
and `demo`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pfedmma_deploy.adapters.base import KEPT
from pfedmma_deploy.data.clients_file import federation_to_dict
from pfedmma_deploy.data.datasets import SiteDataset, load_dataset
from pfedmma_deploy.data.doctor_data import warn_of_content
from pfedmma_deploy.data.federation import build_site
from pfedmma_deploy.errors import DataError, FleetError, PfedmmaError, TrainingError
from pfedmma_deploy.federated.engine import ClientReport, InProcessEngine, traffic
from pfedmma_deploy.federated.rounds import round_record
from pfedmma_deploy.federated.session import (
    Session,
    build_session,
    open_method,
    open_run_session,
    require_fingerprint,
)
from pfedmma_deploy.federated.train import client_result, run_manifest
from pfedmma_deploy.fleet.checks import check_sent, largest_sent
from pfedmma_deploy.fleet.flower import GONE_AFTER, largest
from pfedmma_deploy.fleet.folder import Invitation
from pfedmma_deploy.fleet.line import Line, RefusedError, UnreachableError
from pfedmma_deploy.fleet.messages import Note, Parcel, is_name, one_line, unpack
from pfedmma_deploy.fleet.states import SiteStates
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.store.run import Run
from pfedmma_deploy.types import ClientData, Dataset

BEAT: Final = GONE_AFTER / 4
"""Seconds between two signs of life."""
FASTEST: Final = 0.1
"""Seconds between two questions for work soon after the last."""
SLOWEST: Final = 1.0
"""The same where there has been none for a while."""
RETRY_AT_MOST: Final = 10.0
"""Seconds between two attempts to reach a server that does not answer."""
OWN_PROBLEM: Final = "its data or its disk; it says more there"
"""What the server is told of an error at a site that is none of its business."""


@dataclass(frozen=True)
class Offer:
    """What taking part means, before anything is sent."""

    invitation: Invitation
    class_names: list[str]
    """The site's own."""
    train: int
    val: int
    test: int
    """Images."""
    warnings: tuple[str, ...]
    bytes_up: int
    """Shared tensors that leave in a round."""
    bytes_down: int
    bytes_kept: int
    """The client's own tensors, which never leave."""
    sends_names: bool
    """Whether the class names leave the site."""
    shared: str
    """What of the model the method shares, in words."""


def prepare(invitation: Invitation, data: str, out: Path, progress: Progress | None = None) -> Site:
    """Look at the images and the backbone, and say what taking part would mean.

    Args:
        invitation: from the operator.
        data: the site's images: a folder with one sub-folder per class, or any other layout.
        out: the site's run folder; one of the same invitation is continued.
        progress: told of images that are read.

    Raises:
        PfedmmaError: images, backbone or folder that do not fit the invitation.
    """
    progress = progress or Silent()
    config = replace(invitation.config, data=data)
    site = Site(replace(invitation, config=config), out, progress)
    if (out / "manifest.json").exists():
        site.reopen()
    else:
        dataset = load_dataset(data, progress=progress)
        if any(example.client for example in dataset.examples):
            raise DataError(
                f"{data} holds the folders of several sites: name the one of {invitation.site}."
            )
        site.dataset = dataset
        # Where the sites propose the names, one's own stand for all until they are known.
        site.open(invitation.class_names or dataset.class_names)
    return site


class Site:
    """A client of a federation, on its own machine."""

    def __init__(self, invitation: Invitation, out: Path, progress: Progress) -> None:
        self.invitation = invitation
        self.out = out
        self.progress = progress
        self.dataset: Dataset | None = None
        self.session: Session | None = None
        self.run: Run | None = None
        self.states = SiteStates(out / "site")
        self._engine: InProcessEngine | None = None
        self._loss: str | None = None

    # Before anything is sent.

    def open(self, class_names: tuple[str, ...] | list[str]) -> None:
        """Divide the images under these class names; the backbone is loaded the first time."""
        config, id = self.invitation.config, self.invitation.site
        assert self.dataset is not None
        named = SiteDataset(self.dataset, class_names, id)
        federation = warn_of_content(build_site(named, config.partition, seed=config.seed))
        if self.session is not None:
            self.session = self.session.on(federation)
            return
        self.session = build_session(config, open_method(config), federation, is_site=True)
        self._require_backbone()

    def reopen(self) -> None:
        """Continue in a folder that is a run of this invitation."""
        self.run = Run.open(self.out)
        found = self.run.manifest.get("fleet", {})
        expected = {"name": self.invitation.fleet, "site": self.invitation.site}
        if {name: found.get(name) for name in expected} != expected:
            raise FleetError(
                f"{self.out} holds another run, not that of site {self.invitation.site} in "
                f"{self.invitation.fleet}: choose another --out."
            )
        # A line that a kill cut off would be in the next one's way.
        self.run.replace_rounds(self.run.rounds)
        self.session = open_run_session(self.run)
        self._require_backbone()

    def _require_backbone(self) -> None:
        owner = f"The federation {self.invitation.fleet}"
        require_fingerprint(self._session.backbone, self.invitation.backbone, owner)

    @property
    def _session(self) -> Session:
        assert self.session is not None
        return self.session

    @property
    def client(self) -> ClientData:
        """The site's images, divided."""
        (client,) = self._session.federation.clients
        return client

    @property
    def own_class_names(self) -> list[str]:
        """Of the classes that the site has images of."""
        dataset = self._session.federation.dataset
        held = {example.label for example in dataset.examples}
        return self._session.federation.names(sorted(held))

    def offer(self) -> Offer:
        """See `Offer`."""
        session, client = self._session, self.client
        adapter = session.build_adapter()
        sizes = traffic(session.method, adapter, [client])
        kept = sum(v.numel() * v.element_size() for v in adapter.tensors(*KEPT).values())
        return Offer(
            invitation=self.invitation,
            class_names=self.own_class_names,
            train=len(client.train),
            val=len(client.val),
            test=len(client.test),
            warnings=session.federation.warnings,
            bytes_up=sizes["up"],
            bytes_down=sizes["down"],
            bytes_kept=kept,
            sends_names=self.invitation.class_names is None,
            shared=session.method.shared,
        )

    # At work.

    def take_part(self) -> Run:
        """Do what the server asks until the last round is done; returns the run of this site.

        A server that does not answer is asked again until it does; only a site that has its result
        needs it no more.

        Raises:
            FleetError: the server refuses this invitation, or asks for what a site does not do.
        """
        invitation = self.invitation
        adapter, method = self._session.build_adapter(), self._session.method
        limit = largest(largest_sent(adapter, method, self.client))
        line = Line(invitation.address, invitation.authority, invitation.private_key, limit)
        try:
            self._connect(line)
            with _beating(line):
                self._work(line)
        except (UnreachableError, RefusedError):
            if not self._is_complete:
                raise
        finally:
            line.close()
        assert self.run is not None
        return self.run

    @property
    def _is_complete(self) -> bool:
        return self.run is not None and self.run.is_complete

    def _work(self, line: Line) -> None:
        """Answer the server until it knows that this site has its result."""
        last: tuple[Parcel, Parcel] | None = None
        pause = FASTEST
        while True:
            found = self._asking(line, line.fetch)
            if found is None:
                time.sleep(pause)
                pause = min(SLOWEST, pause * 1.3)
                continue
            message, parcel = found
            # A task that comes again was answered into a connection that broke.
            answer = last[1] if last and last[0] == parcel else self._answer(parcel)
            last, pause = (parcel, answer), FASTEST
            is_heard = self._asking(line, lambda: line.reply(message, answer))  # noqa: B023
            if is_heard and self._is_complete and unpack(answer).kind == "finish":
                return

    def _connect(self, line: Line) -> None:
        """Until the server answers; an earlier process of this site must be gone first."""
        wait, is_told = 0.5, False
        while True:
            try:
                line.connect()
                if is_told:
                    self.progress.note("Connected.")
                return
            except RefusedError as error:
                if not error.is_taken:
                    raise
                reason = str(error)
            except UnreachableError as error:
                if self._is_complete:
                    raise
                reason = f"{self.invitation.address} does not answer ({error})"
            if not is_told:
                self.progress.note(f"Waiting: {reason}. Trying again.")
                is_told = True
            time.sleep(wait)
            wait = min(RETRY_AT_MOST, wait * 1.5)

    def _asking(self, line: Line, call: Callable[[], Any]) -> Any:
        """What `call` returns, however often it takes."""
        wait = FASTEST
        while True:
            try:
                return call()
            except UnreachableError:
                time.sleep(wait)
                wait = min(RETRY_AT_MOST, wait * 2)
                self._connect(line)
            except RefusedError as error:
                if not error.is_unknown:
                    raise
                # A server that was started again has another number for this site, and has
                # forgotten what it asked.
                self._connect(line)
                return None

    def _answer(self, parcel: Parcel) -> Parcel:
        try:
            note = unpack(parcel)
            if note.kind == "hello":
                return self._introduce().pack()
            if note.kind == "failed":
                raise FleetError("the server sent a message of kind 'failed'")
            self._accept(note)
            return (self._train(note) if note.kind == "train" else self._finish(note)).pack()
        except (FleetError, TrainingError) as error:
            self.progress.note(f"The server was told: {one_line(str(error))}")
            return Note("failed", {"reason": one_line(str(error))}).pack()
        except (PfedmmaError, OSError) as error:
            # It may name files or classes of this site, which are nobody else's business.
            self.progress.note(f"The server was told only that this site has a problem: {error}")
            return Note("failed", {"reason": OWN_PROBLEM}).pack()

    def _introduce(self) -> Note:
        session = self._session
        values = {
            # Where the invitation names the classes, the site's own are nobody's business.
            "class_names": self.own_class_names if self.invitation.class_names is None else [],
            "images": len(self.client.train),
            "fingerprint": session.backbone.fingerprint,
        }
        return Note("hello", values)

    def _accept(self, note: Note) -> None:
        """Take a task only of the federation that was joined, and settle its class names."""
        values, session = note.values, self._session
        expected = {
            "method": session.method.name,
            "fingerprint": self.invitation.backbone["fingerprint"],
        }
        for name, wanted in expected.items():
            if values.get(name) != wanted:
                raise FleetError(
                    f"the server's {name} is {values.get(name)!r}, agreed was {wanted!r}"
                )
        round, rounds = values.get("round"), session.config.rounds
        if note.kind == "train" and (type(round) is not int or not 0 <= round < rounds):
            raise FleetError(f"the server asks for round {round!r} of {rounds}")
        check_sent(note.tensors, session.build_adapter(), session.method, self.client)
        counted = values.get("counted")
        if counted is not None and (type(counted) is not int or not 0 <= counted < rounds):
            raise FleetError(f"the server counts round {counted!r}")
        # Last, because the names of the first task are those of all that follow.
        self._agree_on(values.get("class_names"))
        self._loss = self.states.count(counted)
        if self._loss is not None:
            self.progress.note(f"warning: {self.states.folder}: {self._loss}.")

    def _agree_on(self, names: object) -> None:
        """Take the federation's class names from the first task; later ones must have the same."""
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise FleetError("the server sent no list of class names")
        if len(set(names)) < len(names) or not all(map(is_name, names)):
            raise FleetError("the server sent class names that are not different, printable names")
        agreed = self.invitation.class_names
        if agreed is not None and list(agreed) != names:
            raise FleetError("the server's class names are not those of the invitation")
        if self.run is None:
            self.open(names)
            self._start_run()
        elif list(self.run.manifest["class_names"]) != names:
            raise FleetError("the server's class names are not those that the training began with")

    def _start_run(self) -> None:
        session = self._session
        manifest = run_manifest(session, self.out)
        fleet = {"role": "site", "name": self.invitation.fleet, "site": self.invitation.site}
        manifest["fleet"] = fleet
        self.run = Run.create(self.out, manifest, federation_to_dict(session.federation))

    def _train(self, note: Note) -> Note:
        round, rounds = note.values["round"], self._session.config.rounds
        assert self.run is not None
        engine, started = self._ready_engine(), time.perf_counter()
        report = engine.train_client(round, self.invitation.site, note.tensors)
        if self._loss is not None:
            report.remarks["state"] = self._loss
        record = round_record(round, [report], time.perf_counter() - started)
        self.run.append_round({**record, **engine.cost.take()})
        self.progress.note(
            f"Round {round + 1} of {rounds}: loss {report.loss:.3f}"
            + ("" if report.val_accuracy is None else f", validation {report.val_accuracy:.1f} %")
        )
        return Note("train", {"round": round, **_figures(report)}, report.update.shared)

    def _ready_engine(self) -> InProcessEngine:
        if self._engine is None:
            session = self._session
            self._engine = InProcessEngine.of(
                session,
                session.build_adapter(),
                self.states,
                client_batching=False,
                first_index=self.invitation.index,
            )
        return self._engine

    def _finish(self, note: Note) -> Note:
        """Write the result: what the server sent, and the client's own."""
        session, run = self._session, self.run
        assert run is not None
        if run.is_complete:
            # A server that was started again cannot know it; the client may be personalized by now.
            return Note("finish")
        initial = session.build_adapter().tensors(*KEPT)
        last = self.states.load_client(self.invitation.site)
        run.save_shared(note.tensors)
        run.save_clients([client_result(session, self.client, last, note.tensors, initial)])
        self._keep_counted(run, note.values.get("counted_rounds"))
        run.manifest["status"] = "complete"
        run.save()
        return Note("finish")

    def _keep_counted(self, run: Run, counted: object) -> None:
        """Leave only the lines of rounds that counted, the last of each."""
        wanted = (
            {each + 1 for each in counted if type(each) is int}
            if isinstance(counted, list)
            else set()
        )
        lines = {record["round"]: record for record in run.rounds if record["round"] in wanted}
        run.replace_rounds([lines[round] for round in sorted(lines)])
        run.record_rounds()


def _figures(report: ClientReport) -> dict[str, Any]:
    """What leaves the site beside its shared tensors."""
    return {
        "num_examples": report.update.num_examples,
        "loss": report.loss,
        "val_accuracy": report.val_accuracy,
        **({"remarks": report.remarks} if report.remarks else {}),
    }


@contextmanager
def _beating(line: Line) -> Iterator[None]:
    """Signs of life from a thread of their own, also while the site trains."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            try:
                line.beat()
            except FleetError:
                continue  # whoever asks for work next will notice

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=1)
