"""`pfedmma fleet serve`: the operator's side, from waiting for sites to a finished run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from pfedmma_deploy.data.class_names import class_key
from pfedmma_deploy.data.clients_file import federation_to_dict
from pfedmma_deploy.data.datasets import NoImages
from pfedmma_deploy.data.federation import split_base_novel
from pfedmma_deploy.errors import FleetError, PfedmmaError
from pfedmma_deploy.federated.engine import payload
from pfedmma_deploy.federated.rounds import run_rounds
from pfedmma_deploy.federated.session import (
    Session,
    build_session,
    open_method,
    open_run_session,
    require_fingerprint,
)
from pfedmma_deploy.federated.train import note_rule, privacy_entry, run_manifest
from pfedmma_deploy.fleet.engine import Desk, GridEngine, last_counted
from pfedmma_deploy.fleet.flower import GONE_AFTER, largest
from pfedmma_deploy.fleet.folder import Fleet
from pfedmma_deploy.fleet.keys import issue_server_certificate
from pfedmma_deploy.fleet.link import Link
from pfedmma_deploy.fleet.messages import Note, one_line, unpack
from pfedmma_deploy.fleet.status import FleetStatus
from pfedmma_deploy.methods.base import Tensors
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.store.run import Run
from pfedmma_deploy.types import Federation, Scope


@dataclass(frozen=True)
class ServeResult:
    """What a federation ended with."""

    run: Run
    status: FleetStatus
    seconds: float
    """Since the first round began, or was continued."""


def serve(
    fleet: Fleet,
    *,
    host: str,
    port: int,
    start_with: int | None = None,
    watch: Callable[[FleetStatus], None] | None = None,
    listening: Callable[[int], None] | None = None,
    progress: Progress | None = None,
) -> ServeResult:
    """Wait for the sites, train, hand out the results; a stop at any moment can be continued.

    Args:
        fleet: the operator's folder.
        host: address to listen on; 0.0.0.0 is all of this machine's.
        port: port to listen on; 0 takes a free one.
        start_with: sites to wait for before the first round; None waits for all that are invited,
            or, in a run that had begun, for a quorum once the others had time to come back.
        watch: is shown the status about once a second.
        listening: is told the port once it is open.
        progress: told of rounds.

    Raises:
        FleetError: the port cannot be opened.
        PfedmmaError: the backbone or the run folder do not fit.
    """
    progress = progress or Silent()
    run = Run.open(fleet.run_folder) if (fleet.run_folder / "manifest.json").exists() else None
    note_rule(fleet.config, len(fleet.members), progress)
    session = _session(fleet)
    answer = payload(session.build_adapter().tensors(Scope.SHARED))
    link = Link(largest(answer))
    address = fleet.address.rpartition(":")[0].strip("[]")
    hosts = list(dict.fromkeys([address, "localhost", "127.0.0.1"]))
    certificate, key = issue_server_certificate(fleet.keys, hosts)
    # It registers the sites: one that calls as soon as the port is open must be known.
    desk = Desk(fleet, link, watch)
    desk.status.round = 0 if run is None else run.checkpoint.round + 1
    with link.listening(host, port, certificate, key) as opened:
        if listening is not None:
            listening(opened)
        try:
            return _train(desk, run, session, start_with, progress)
        finally:
            if desk.status.stage != "complete":
                desk.status.stage, desk.status.remark = "stopped", ""
            desk.show()


def _train(
    desk: Desk, run: Run | None, session: Session, start_with: int | None, progress: Progress
) -> ServeResult:
    fleet = desk.fleet
    if run is None:
        wanted = len(fleet.members) if start_with is None else start_with
        _await_sites(desk, wanted)
        names = fleet.class_names or propose_class_names(desk)
        session = session.on(_federation(fleet, names))
        run = _create_run(fleet, session)
    else:
        if not run.is_complete and start_with is None:
            _await_return(desk)
        elif not run.is_complete:
            _await_sites(desk, start_with or 0)
        session = open_run_session(run)
    started = time.perf_counter()
    if not run.is_complete:
        adapter = session.build_adapter()
        engine = GridEngine(desk, run, session.method, adapter)
        shared = session.method.start(adapter, engine.members())
        shared = run_rounds(
            run,
            engine,
            session.method,
            engine.await_members,
            shared,
            run.checkpoint,
            progress,
            quorum=fleet.quorum,
            noise_seed=fleet.noise_seed,
        )
        engine.tally()
        run.save_shared(shared)
        run.record_rounds()
        run.manifest["status"] = "complete"
        run.save()
    _hand_out(desk, run, session)
    desk.status.stage, desk.status.remark = "complete", ""
    return ServeResult(run, desk.status, time.perf_counter() - started)


def propose_class_names(desk: Desk) -> list[str]:
    """The sorted names of all sites that are there, as `--partition folders` would find them.

    "Cat" at one site and "cat" at another are one class, under the name that sorts first.
    """
    proposed = [desk.greeted[site.id].values["class_names"] for site in desk.here()]
    names: dict[str, str] = {}
    for name in sorted(chain.from_iterable(proposed)):
        names.setdefault(class_key(name), name)
    return list(names.values())


def _await_sites(desk: Desk, wanted: int) -> None:
    desk.status.stage = "waiting for sites"
    while len(desk.here()) < wanted:
        desk.status.remark = f"{len(desk.here())} of {wanted} are here"
        desk.look()


def _await_return(desk: Desk) -> None:
    """After a restart of this server: so that a site is not left out for being a second slower.

    One that shows signs of life and has not said who it is yet is still at work for the server that
    was there before.
    """
    desk.status.stage, began = "waiting for sites", time.monotonic()
    while True:
        here = [site.id for site in desk.here()]
        missing = [site.id for site in desk.fleet.members if site.id not in here]
        is_busy = any(desk.link.is_here(id) for id in missing)
        patience = desk.fleet.round_limit if is_busy else GONE_AFTER
        is_over = time.monotonic() - began > patience
        if not missing or (is_over and len(here) >= desk.fleet.quorum):
            return
        desk.status.remark = f"{len(here)} of {len(here) + len(missing)} are back"
        desk.look()


def _federation(fleet: Fleet, class_names: Sequence[str]) -> Federation:
    """What a server knows of the sites' data."""
    base, novel = split_base_novel(len(class_names), fleet.config.partition.classes)
    return Federation(NoImages(class_names), base, novel, (), (), ())


def _session(fleet: Fleet) -> Session:
    """A session without images, and without classes as long as no site is there."""
    config = fleet.config
    session = build_session(config, open_method(config), _federation(fleet, ()))
    require_fingerprint(session.backbone, fleet.backbone, f"The federation {fleet.folder}")
    return session


def _create_run(fleet: Fleet, session: Session) -> Run:
    out = fleet.run_folder
    manifest = run_manifest(session, out)
    manifest |= privacy_entry(session, len(fleet.members))
    manifest["data_path"] = None
    manifest["fleet"] = {"role": "server", "name": fleet.name}
    return Run.create(out, manifest, federation_to_dict(session.federation))


def _hand_out(desk: Desk, run: Run, session: Session) -> None:
    """Tell every site that it is over, with what it needs for its result.

    One that is not there in time gets it when `serve` is started again.
    """
    desk.status.stage = "handing out results"
    shared, counted = run.load_shared(), last_counted(run)
    # By key: who is invited again gets its result again.
    done: list[str] = run.manifest["fleet"].setdefault("handed_out", [])
    failed: list[str] = []
    tickets: dict[str, str] = {}
    deadline = time.monotonic() + desk.fleet.round_limit
    while time.monotonic() < deadline:
        desk.look()
        over = {*done, *failed}
        waiting = [site.id for site in desk.fleet.members if site.public_key not in over]
        if not waiting:
            return
        desk.status.remark = f"waiting for {', '.join(waiting)}"
        for site in desk.here():
            if site.id not in tickets:
                note = _result(run, session, site.id, shared, counted.get(site.id))
                ticket = desk.link.send(site.id, note.pack())
                if ticket is not None:
                    tickets[site.id] = ticket
        for site in desk.fleet.members:
            is_kept = _is_kept(desk, site.id, tickets[site.id]) if site.id in tickets else None
            if is_kept is False:
                failed.append(site.public_key)
            elif is_kept:
                desk.status.site(site.id).state = "done"
                if site.public_key not in done:
                    done.append(site.public_key)
                    run.save()


def _result(run: Run, session: Session, site: str, shared: Tensors, counted: int | None) -> Note:
    values = {
        "counted": counted,
        "counted_rounds": [r["round"] - 1 for r in run.rounds if site in r["clients"]],
        "class_names": run.manifest["class_names"],
        "method": run.manifest["method"],
        "fingerprint": run.manifest["backbone"]["fingerprint"],
    }
    return Note("finish", values, session.method.distribute(shared, site))


def _is_kept(desk: Desk, site: str, ticket: str) -> bool | None:
    """Whether a site says that it has its result; None where it says nothing (any more)."""
    try:
        parcel = desk.link.answer(ticket)
        if parcel is None:
            return None
        note = unpack(parcel)
        if note.kind != "finish":
            raise FleetError(f"could not keep its result: {note.values.get('reason')}")
    except PfedmmaError as error:
        desk.status.site(site).reason = one_line(str(error))
        return False
    return True
