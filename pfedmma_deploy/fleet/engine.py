"""`GridEngine`: the clients of a round are sites on other machines.

A round lays a task ready for every chosen site, looks for answers until all are here or its time is
over, checks each, and hands on the good ones in client order: so sums are the same whoever was
faster. Which of a site's rounds counted is the server's to say, and every task says it: a site
whose answer was late or refused starts again from the state before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pfedmma_deploy.adapters.base import Adapter
from pfedmma_deploy.errors import FleetError
from pfedmma_deploy.federated.engine import ClientReport
from pfedmma_deploy.federated.rounds import clients_in_round
from pfedmma_deploy.fleet.checks import MAX_EXAMPLES, check_report, far_updates
from pfedmma_deploy.fleet.flower import GONE_AFTER
from pfedmma_deploy.fleet.folder import Fleet, Site
from pfedmma_deploy.fleet.link import Link
from pfedmma_deploy.fleet.messages import Note, is_name, one_line, unpack
from pfedmma_deploy.fleet.status import WRITE_EVERY, FleetStatus
from pfedmma_deploy.methods.base import Method, Tensors
from pfedmma_deploy.store.run import Run

POLL: Final = 0.05
"""Seconds between two looks at what has arrived."""
STALL: Final = 5.0
"""Seconds without a look after which this process was asleep, and not the sites."""
STRIKES: Final = 3
"""Refused updates after which a site is set aside."""


@dataclass
class GridCost:
    """What a round has to say beside its reports: who is missing, and why."""

    absent: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    waited: float = 0.0

    def take(self) -> dict[str, object]:
        """See `Cost`; empty tables are left out."""
        found: dict[str, object] = {"seconds_waited": round(self.waited, 3)}
        if self.absent:
            found["absent"] = self.absent
        if self.refused:
            found["refused"] = self.refused
        self.absent, self.refused, self.waited = {}, {}, 0.0
        return found


class Desk:
    """The server's place: who is there, what they said of themselves, and how it is shown."""

    def __init__(
        self, fleet: Fleet, link: Link, watch: Callable[[FleetStatus], None] | None = None
    ) -> None:
        """`watch` is shown the status whenever it may have changed."""
        self.fleet = fleet
        self.link = link
        self.greeted: dict[str, Note] = {}
        """What each site answered to hello."""
        self.status = FleetStatus(fleet.name, fleet.address, fleet.config.rounds)
        self._hellos: dict[str, str] = {}  # ticket by site
        self._watch = watch
        self._last_look = time.monotonic()
        self._last_write = 0.0
        self._register()

    def look(self) -> float:
        """Sleep a moment, then see who came, went, or was invited; call this while waiting.

        Returns:
            Seconds that no site can help, because this process stood still; 0 as a rule. Only now
            `is_here` has taken them into account.
        """
        time.sleep(POLL)
        pause = time.monotonic() - self._last_look
        stood_still = pause if pause > STALL else 0.0
        if stood_still:
            self.link.forgive(stood_still)
        self._last_look = time.monotonic()
        self._greet()
        if self._last_look - self._last_write > WRITE_EVERY:
            self.show()
        return stood_still

    def show(self) -> None:
        """Write and show the status as it is now; take over who was invited or removed."""
        self._last_write = time.monotonic()
        self.fleet = Fleet.open(self.fleet.folder)
        self._register()
        for site in self.fleet.sites:
            row = self.status.site(site.id)
            contact = self.link.contacts.get(site.id)
            if contact is None:
                row.state, row.reason = "set aside", row.reason or "removed by the operator"
                continue
            row.bytes_received, row.bytes_sent = contact.received, contact.sent
            seen = contact.last_seen
            row.seen_seconds_ago = None if seen is None else self._last_write - seen
            is_here = self.link.is_here(site.id)
            if row.state == "not here" and is_here:
                row.state = "here"
            elif row.state in ("here", "training", "answered") and not is_here:
                row.state = "not here"
        self.status.write(self.fleet.folder)
        if self._watch is not None:
            self._watch(self.status)

    def here(self) -> list[Site]:
        """Members that are there and have said who they are."""
        found = []
        for site in self.fleet.members:
            if site.id in self.greeted and self.link.is_here(site.id):
                found.append(site)
        return found

    def _register(self) -> None:
        members = {site.id: site for site in self.fleet.members}
        for id in self.link.contacts.keys() - members.keys():
            self.link.forbid(id)
            self._forget(id)
        for site in members.values():
            if self.link.allow(site.id, site.public_key):
                self._forget(site.id)
            self.status.site(site.id)

    def _forget(self, site: str) -> None:
        """Ask a site anew who it is."""
        self.greeted.pop(site, None)
        self._hellos.pop(site, None)

    def _greet(self) -> None:
        for site in self.fleet.members:
            ticket = self._hellos.get(site.id)
            if ticket is None and site.id not in self.greeted and self.link.is_here(site.id):
                sent = self.link.send(site.id, Note("hello").pack())
                if sent is not None:
                    self._hellos[site.id] = sent
            elif ticket is not None:
                self._hear(site.id, ticket)

    def _hear(self, site: str, ticket: str) -> None:
        row = self.status.site(site)
        try:
            parcel = self.link.answer(ticket)
            if parcel is None:
                return
            self.greeted[site] = self._checked(unpack(parcel))
            row.images = self.greeted[site].values["images"]
        except FleetError as error:
            row.reason = one_line(str(error))
        del self._hellos[site]

    def _checked(self, note: Note) -> Note:
        values = note.values
        if note.kind == "failed":
            raise FleetError(f"cannot take part: {values.get('reason')}")
        names, images = values.get("class_names"), values.get("images")
        if note.kind != "hello" or type(images) is not int or not 1 <= images <= MAX_EXAMPLES:
            raise FleetError(f"says that it has {images!r} images, expected 1 to {MAX_EXAMPLES:,}")
        if not isinstance(names, list) or not all(map(is_name, names)):
            raise FleetError("proposes class names that are no list of printable names")
        if values.get("fingerprint") != self.fleet.backbone["fingerprint"]:
            raise FleetError("has another backbone than the federation's")
        return note


class GridEngine:
    """See the module. `Engine` of `federated.rounds`."""

    def __init__(self, desk: Desk, run: Run, method: Method[Any, Any], adapter: Adapter) -> None:
        """`adapter` is the method's in its initial state, for names and shapes."""
        self.desk = desk
        self.run = run
        self.method = method
        self.adapter = adapter
        self.cost = GridCost()

    def members(self) -> list[str]:
        """Sites that a round may choose from: not removed, and not set aside."""
        self.tally()
        rows = self.desk.status.sites
        members = [site.id for site in self.desk.fleet.members]
        return [id for id in members if rows[id].refused < STRIKES]

    def await_members(self) -> list[str]:
        """The members, once a round of them can reach the quorum."""
        desk, share = self.desk, self.run.config.clients_per_round
        while True:
            members, invited = self.members(), len(desk.fleet.members)
            chosen = clients_in_round(share, len(members)) if members else 0
            if chosen >= desk.fleet.quorum:
                return members
            desk.status.stage = "waiting for sites"
            desk.status.remark = (
                f"{chosen} of {len(members)} sites would train, the quorum is {desk.fleet.quorum}"
            )
            if len(members) < invited:
                desk.status.remark = (
                    f"{invited - len(members)} of {invited} sites are set aside, and "
                    f"{desk.fleet.quorum} must take part: pfedmma fleet add lets one in again"
                )
            # The desk takes over who is invited no more often, and a tally reads all rounds again.
            until = time.monotonic() + WRITE_EVERY
            while time.monotonic() < until:
                desk.look()

    def run_round(
        self, round: int, clients: Sequence[str], server: Tensors
    ) -> Iterator[ClientReport]:
        """See `Engine`. Starts once as many sites are there as make a quorum."""
        self._await_quorum(clients)
        desk, started = self.desk, time.monotonic()
        desk.status.stage, desk.status.round, desk.status.remark = "training", round, ""
        counted = last_counted(self.run)
        sent = {client: self.method.distribute(server, client) for client in clients}
        tickets: dict[str, str] = {}
        for client in clients:
            note = self._task(round, client, counted.get(client), sent[client])
            ticket = desk.link.send(client, note.pack()) if desk.link.is_here(client) else None
            if ticket is None:
                self._miss(client, "was not there when the round began")
            else:
                tickets[client] = ticket
                desk.status.site(client).state = "training"
        desk.show()
        reports = self._collect(round, tickets, sent, started + desk.fleet.round_limit)
        for client, reason in far_updates(reports, sent).items():
            del reports[client]
            self._refuse(client, reason)
        self.cost.waited = time.monotonic() - started
        desk.status.round = round + 1
        desk.show()
        for client in clients:
            if client in reports:
                yield reports[client]

    def _task(self, round: int, client: str, counted: int | None, sent: Tensors) -> Note:
        manifest = self.run.manifest
        values = {
            "round": round,
            "counted": counted,
            "class_names": manifest["class_names"],
            "method": manifest["method"],
            "fingerprint": manifest["backbone"]["fingerprint"],
        }
        return Note("train", values, sent)

    def _await_quorum(self, clients: Sequence[str]) -> None:
        """Rounds that cannot count are not begun: else a bad hour would use them all up."""
        desk = self.desk
        while True:
            desk.look()
            # Without one that is removed meanwhile: nobody waits for it.
            left = [site.id for site in desk.fleet.members if site.id in clients]
            quorum = min(desk.fleet.quorum, len(left))
            if sum(site.id in left for site in desk.here()) >= quorum:
                return
            desk.status.stage = "waiting for sites"
            desk.status.remark = f"{quorum} of the {len(left)} chosen must be there"

    def _collect(
        self, round: int, tickets: dict[str, str], sent: dict[str, Tensors], deadline: float
    ) -> dict[str, ClientReport]:
        reports: dict[str, ClientReport] = {}
        waiting = dict(tickets)
        while waiting:
            deadline += self.desk.look()
            if time.monotonic() > deadline:
                break
            gone = [client for client in waiting if not self.desk.link.is_here(client)]
            for client, ticket in list(waiting.items()):
                try:
                    report = self._answer(round, client, ticket, sent[client])
                except FleetError as error:
                    del waiting[client]
                    self._refuse(client, str(error))
                    continue
                if report is not None:
                    del waiting[client]
                    reports[client] = report
                    self.desk.status.site(client).state = "answered"
                elif client in self.cost.absent:
                    del waiting[client]
                elif client in gone:
                    del waiting[client]
                    self.desk.link.close(ticket)
                    self._miss(client, self._why_gone(client))
        for client, ticket in waiting.items():
            self.desk.link.close(ticket)
            self._miss(client, f"did not answer within {self.desk.fleet.round_limit:.0f} s")
        return reports

    def _answer(self, round: int, client: str, ticket: str, sent: Tensors) -> ClientReport | None:
        parcel = self.desk.link.answer(ticket)
        if parcel is None:
            return None
        note = unpack(parcel)
        if note.kind == "failed":
            self._miss(client, f"could not train: {note.values.get('reason')}")
            return None
        return check_report(note, client, round, self.adapter, self.method, sent)

    def _why_gone(self, client: str) -> str:
        contact = self.desk.link.contacts.get(client)
        if contact is None:
            return "was removed by the operator"
        if not contact.process:
            return "left in the middle of the round"
        return f"was not heard of for {GONE_AFTER:.0f} s"

    def _miss(self, client: str, reason: str) -> None:
        row = self.desk.status.site(client)
        row.state = "here" if self.desk.link.is_here(client) else "not here"
        self.cost.absent[client] = row.reason = one_line(reason)

    def _refuse(self, client: str, reason: str) -> None:
        row = self.desk.status.site(client)
        self.cost.refused[client] = row.reason = one_line(reason)
        row.refused += 1
        if row.refused >= STRIKES:
            row.state = "set aside"

    def tally(self) -> None:
        """Count each site's rounds and refusals anew from the rounds that are done."""
        done = self.run.rounds[: self.run.checkpoint.round + 1]
        for site in self.desk.fleet.members:
            row = self.desk.status.site(site.id)
            row.rounds = sum(site.id in record["clients"] for record in done)
            refusals = [
                record["refused"][site.id]
                for record in done[site.since :]
                if site.id in record.get("refused", {})
            ]
            row.refused, row.reason = len(refusals), row.reason or "".join(refusals[-1:])
            if row.refused >= STRIKES:
                row.state = "set aside"
            elif row.state == "set aside":
                row.state = "not here"


def last_counted(run: Run) -> dict[str, int]:
    """The last round, from 0, in which each site's update counted."""
    found: dict[str, int] = {}
    for record in run.rounds[: run.checkpoint.round + 1]:
        for client in record["clients"]:
            found[client] = record["round"] - 1
    return found
