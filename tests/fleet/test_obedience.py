"""A site does what was agreed when it joined, and nothing else, whatever the server asks."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree

from pfedmma_deploy.adapters.base import KEPT
from pfedmma_deploy.errors import FleetError
from pfedmma_deploy.fleet.folder import Fleet
from pfedmma_deploy.fleet.keys import issue_server_certificate
from pfedmma_deploy.fleet.line import RefusedError
from pfedmma_deploy.fleet.link import Link
from pfedmma_deploy.fleet.messages import Note, Parcel, unpack
from pfedmma_deploy.fleet.site import OWN_PROBLEM, Site, prepare
from pfedmma_deploy.methods.base import Tensors
from pfedmma_deploy.types import Scope
from tests.fleet import scripted
from tests.fleet.scripted import (
    NAMES,
    PATIENCE,
    invitation,
    make_fleet,
    options,
    photos,
    wait_for,
)


class Ordered:
    """A real site, and a server that asks it whatever a test says."""

    def __init__(self, folder: Path, class_names: tuple[str, ...] | None = NAMES) -> None:
        self.fleet = make_fleet(folder / "wards", ["a"], options(rounds=2), class_names)
        self.data = photos(folder / "photos", 1)
        self.out = folder / "out"
        self.link = Link(1_000_000)
        self.link.allow("a", self.fleet.sites[0].public_key)
        self.error: BaseException | None = None

    @contextlib.contextmanager
    def working(self) -> Iterator[Ordered]:
        certificate, key = issue_server_certificate(self.fleet.keys, ["127.0.0.1"])
        with self.link.listening("127.0.0.1", 0, certificate, key) as port:
            address = f"127.0.0.1:{port}"
            read = replace(invitation(self.fleet, "a"), address=address)
            self.site = prepare(read, str(self.data), self.out)
            thread = threading.Thread(target=self._work, daemon=True)
            thread.start()
            wait_for(lambda: self.link.is_here("a"))
            yield self
            # A site whose invitation is taken back ends.
            self.link.forbid("a")
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def _work(self) -> None:
        try:
            self.site.take_part()
        except FleetError as error:
            self.error = error

    def shared(self) -> Tensors:
        assert self.site.session is not None
        return self.site.session.build_adapter().tensors(Scope.SHARED)

    def task(self, tensors: Tensors | None = None, kind: str = "train", **changes: Any) -> Parcel:
        """A right task, but for what is given."""
        values = {
            "kind": kind,
            "round": 0,
            "counted": None,
            "class_names": list(NAMES),
            "method": "pfedmma",
            "fingerprint": self.fleet.backbone["fingerprint"],
        }
        packed = Note("train", {}, self.shared() if tensors is None else tensors).pack()
        return Parcel(json.dumps({**values, **changes}), packed.tensors)

    def ask(self, parcel: Parcel) -> Note:
        """What the site answers."""
        answers: list[Parcel] = []
        ticket = self.send(parcel)

        def is_here() -> bool:
            found = self.link.answer(ticket)
            answers.extend([] if found is None else [found])
            return bool(answers)

        wait_for(is_here)
        return unpack(answers[0])

    def send(self, parcel: Parcel) -> str:
        """As soon as the site is known to Flower too; returns the ticket."""
        tickets: list[str] = []

        def is_sent() -> bool:
            ticket = self.link.send("a", parcel)
            tickets.extend([] if ticket is None else [ticket])
            return bool(tickets)

        wait_for(is_sent)
        return tickets[0]

    def refuses(self, parcel: Parcel) -> str:
        """The reason that it gives; nothing must have been trained or stored."""
        note = self.ask(parcel)
        assert note.kind == "failed" and not note.tensors, note
        assert self.site.run is None and not self.out.exists()
        return str(note.values["reason"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ordered]:
    """It never gets a right task before the module's end; then it does it."""
    with Ordered(tmp_path_factory.mktemp("ordered")).working() as found:
        yield found
        answer = found.ask(found.task())
        assert answer.kind == "train" and answer.values["num_examples"] == 8
        assert answer.tensors.keys() == found.shared().keys()


def test_what_it_says_of_itself(site: Ordered) -> None:
    """Eight images of two classes, which the invitation names, so it names none."""
    assert site.ask(Note("hello").pack()) == Note(
        "hello",
        {"class_names": [], "images": 8, "fingerprint": site.fleet.backbone["fingerprint"]},
    )


def bias(value: torch.Tensor) -> Callable[[Ordered], Tensors]:
    return lambda site: {**site.shared(), "pair.0.bias": value}


def a_local_layer(site: Ordered) -> Tensors:
    assert site.site.session is not None
    own = site.site.session.build_adapter().tensors(*KEPT)
    name = min(own)
    return {**site.shared(), name: own[name]}


TENSORS: dict[str, tuple[Callable[[Ordered], Tensors], str]] = {
    "a name nobody announced": (
        lambda site: {**site.shared(), "../../x": torch.zeros(1)},
        "sent a tensor '../../x' that was not announced",
    ),
    "a local layer": (a_local_layer, "that was not announced"),
    "another shape": (
        bias(torch.zeros(5)),
        "sent pair.0.bias as float32 [5], expected float32 [4]",
    ),
    "another dtype": (
        bias(torch.zeros(4).half()),
        "sent pair.0.bias as float16 [4], expected float32 [4]",
    ),
    "nan": (bias(torch.full((4,), torch.nan)), "tensor pair.0.bias holds values that are not"),
    "infinity": (bias(torch.full((4,), torch.inf)), "tensor pair.0.bias holds values that are not"),
    "less": (
        lambda site: {"pair.0.bias": site.shared()["pair.0.bias"]},
        "lacks tensor pair.0.weight",
    ),
    "none": (lambda site: {}, "sent no tensors at all"),
}


@pytest.mark.parametrize("what", sorted(TENSORS))
def test_tensors_that_were_not_agreed(what: str, site: Ordered) -> None:
    make, reason = TENSORS[what]
    assert reason in site.refuses(site.task(make(site)))
    assert reason in site.refuses(site.task(make(site), kind="finish"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fingerprint": "0" * 64}, "the server's fingerprint is '0000"),
        ({"fingerprint": ["x"] * 5_000}, "the server's fingerprint is ['x', "),
        ({"method": "fedotp"}, "the server's method is 'fedotp', agreed was 'pfedmma'"),
        ({"method": "os.system"}, "the server's method is 'os.system', agreed was 'pfedmma'"),
        ({"class_names": ["cat", "cow"]}, "the server's class names are not those of the invitati"),
        ({"class_names": ["dog", "cat"]}, "the server's class names are not those of the invitati"),
        ({"class_names": "cat"}, "the server sent no list of class names"),
        ({"class_names": [["cat"]]}, "the server sent no list of class names"),
        ({"class_names": None}, "the server sent no list of class names"),
        ({"class_names": ["cat", "cat"]}, "class names that are not different, printable names"),
        ({"class_names": ["cat", ""]}, "class names that are not different, printable names"),
        ({"class_names": ["cat", "\x1b[2J"]}, "class names that are not different, printable"),
        ({"round": 2}, "the server asks for round 2 of 2"),
        ({"round": -1}, "the server asks for round -1 of 2"),
        ({"round": True}, "the server asks for round True of 2"),
        ({"round": "../0"}, "the server asks for round '../0' of 2"),
        ({"round": None}, "the server asks for round None of 2"),
        ({"counted": "../../etc/passwd"}, "the server counts round '../../etc/passwd'"),
        ({"counted": -1}, "the server counts round -1"),
        ({"counted": 2}, "the server counts round 2"),
        ({"kind": "failed"}, "the server sent a message of kind 'failed'"),
        ({"kind": "run", "code": "import os"}, "a message of kind 'run', expected one of hello"),
        ({"kind": None}, "a message of kind None, expected one of hello, train, finish, failed"),
    ],
)
def test_tasks_that_were_not_agreed(changes: dict[str, Any], reason: str, site: Ordered) -> None:
    found = site.refuses(site.task(**changes))
    assert reason in found and len(found) <= 300


@pytest.mark.parametrize("header", ["", "[" * 30_000, '{"kind": "train"', "x" * 70_000, "[]"])
def test_headers_that_are_none(header: str, site: Ordered) -> None:
    assert site.refuses(Parcel(header)).startswith("a ")


@pytest.mark.parametrize("tensors", [b"x", b"\x80\x04cos\nsystem\n", b"\xff" * 100])
def test_tensors_that_are_none(tensors: bytes, site: Ordered) -> None:
    """The second is the beginning of a pickle."""
    reason = site.refuses(Parcel(site.task().header, tensors))
    assert "its tensors is not a safetensors file" in reason or "a header of" in reason


def test_class_names_may_not_change_while_it_trains(tmp_path: Path) -> None:
    """The first task settles them; they are names, whatever they look like."""
    names = ["../../evil", "cat", "dog"]
    with Ordered(tmp_path, class_names=None).working() as site:
        hello = site.ask(Note("hello").pack())
        assert hello.values["class_names"] == ["cat", "dog"]
        assert "that was not announced" in site.refuses(
            site.task({"x": torch.zeros(1)}, class_names=names)
        )
        assert site.ask(site.task(class_names=names)).kind == "train"
        later = site.task(round=1, counted=0)
        reason = "the server's class names are not those that the training began with"
        assert site.ask(later) == Note("failed", {"reason": reason})
        done = site.task(kind="finish", counted=0, counted_rounds=[0, "x"], class_names=names)
        assert site.ask(done).kind == "finish"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos", "wards"]
    assert not list(tmp_path.parent.glob("evil*"))


def test_what_is_wrong_at_a_site_stays_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator learns that there is a problem; which file it is stands in the site's words."""
    said: list[str] = []
    with Ordered(tmp_path).working() as site:
        monkeypatch.setattr(site.site.progress, "note", said.append)
        (gone,) = site.data.glob("train/cat/patient-1-train-cat-0.png")
        gone.unlink()
        assert site.ask(site.task()) == Note("failed", {"reason": OWN_PROBLEM})
    assert any("patient-1-train-cat-0.png" in line for line in said)


# A server that is none of ours, under a right certificate.


@contextlib.contextmanager
def rogue(fleet: Fleet, answer: bytes, more: bytes = b"") -> Iterator[tuple[int, list[int]]]:
    """Says `answer` to every request, then `more` for ever; yields its port, and what it sent."""
    certificate, key = issue_server_certificate(fleet.keys, ["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    sent: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        port: int = listener.getsockname()[1]

        def serve() -> None:
            with contextlib.suppress(OSError):
                plain, _ = listener.accept()
                listener.close()
                plain.settimeout(PATIENCE)
                with context.wrap_socket(plain, server_side=True) as tls:
                    hear(tls)
                    # Else the site would say goodbye on this connection, to nobody.
                    tls.sendall(answer.replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
                    while more and sum(sent) < 1_000_000_000:
                        tls.sendall(more)
                        sent.append(len(more))
                    # Until the site has had enough; who hangs up first may cut the answer off.
                    while tls.recv(65536):
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield port, sent
        thread.join(PATIENCE)


def hear(tls: ssl.SSLSocket) -> None:
    """A request to its end."""
    heard = b""
    while b"\r\n\r\n" not in heard:
        heard += tls.recv(65536)
    head, _, body = heard.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: ([0-9]+)", head.lower())
    left = (int(length.group(1)) if length else 0) - len(body)
    while left > 0:
        left -= len(tls.recv(left))


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return make_fleet(tmp_path / "wards", ["a"])


@pytest.mark.parametrize("length", ["content-length: 1000000000", "transfer-encoding: chunked"])
def test_an_answer_of_a_gigabyte(length: str, fleet: Fleet) -> None:
    more = b"10000\r\n" + bytes(65536) + b"\r\n" if "chunked" in length else bytes(65536)
    head = f"HTTP/1.1 200 OK\r\n{length}\r\n\r\n".encode()
    with rogue(fleet, head, more) as (port, sent):
        line = scripted.line(fleet, "a", port, limit=100_000)
        with pytest.raises(FleetError, match=r"^the server sends more than 100,000 bytes at once$"):
            line.fetch()
        line.close()
    assert sum(sent) < 64_000_000


def test_an_answer_that_unpacks_to_a_gigabyte(fleet: Fleet) -> None:
    """It is taken as it is, and is nothing then."""
    packed = gzip.compress(bytes(10_000_000))
    head = f"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {len(packed)}\r\n\r\n"
    with rogue(fleet, head.encode() + packed) as (port, _):
        line = scripted.line(fleet, "a", port, limit=100_000)
        with pytest.raises(FleetError, match="the server's answer cannot be read"):
            line.fetch()
        line.close()


def test_a_server_that_sends_a_site_elsewhere(fleet: Fleet) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(0.2)
        target = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/"
        head = f"HTTP/1.1 307 Go\r\nlocation: {target}\r\ncontent-length: 0\r\n\r\n"
        with rogue(fleet, head.encode()) as (port, _):
            line = scripted.line(fleet, "a", port, limit=100_000)
            with pytest.raises(RefusedError, match=r"^the server refuses with HTTP status 307$"):
                line.connect()
            line.close()
        with pytest.raises(TimeoutError):
            elsewhere.accept()


def parts(count: int) -> PullMessagesResponse:
    """A message without content, said to have this many parts."""
    tree = ObjectTree(object_id="0" * 64)
    tree.children.extend(ObjectTree(object_id=f"{i:064x}") for i in range(count - 1))
    about = Metadata(run_id=1, message_id="0" * 64, src_node_id=1, message_type="train")
    message = Message(metadata=about)
    message.content.SetInParent()
    return PullMessagesResponse(messages_list=[message], message_object_trees=[tree])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"\xff" * 20, "the server's answer cannot be read: Invalid protobuf response payload"),
        (
            PullMessagesResponse(messages_list=[Message()]).SerializeToString(),
            "the server sent what Flower cannot read",
        ),
        (parts(100).SerializeToString(), "the server sent a message of 100 parts, at most 8"),
    ],
)
def test_what_is_no_task_at_all(answer: bytes, reason: str, fleet: Fleet) -> None:
    head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(answer)}\r\n\r\n"
    with rogue(fleet, head.encode() + answer) as (port, _):
        line = scripted.line(fleet, "a", port, limit=100_000)
        with pytest.raises(FleetError, match=reason):
            line.fetch()
        line.close()


def test_a_parcel_larger_than_any_can_be(tmp_path: Path) -> None:
    """A site reads twice its tensors at most, and 264 KB around them."""
    with Ordered(tmp_path).working() as site:
        site.send(Parcel('{"kind": "train"}', bytes(1_000_000)))
        wait_for(lambda: site.error is not None)
    assert "the server sends more than 264,512 bytes at once" in str(site.error)
    assert not site.out.exists()


def test_only_these_kinds_are_answered() -> None:
    """By construction: what a site does for each is a method of its own, and there is no other."""
    from pfedmma_deploy.fleet.messages import KINDS

    assert KINDS == ("hello", "train", "finish", "failed")
    assert {"_introduce", "_train", "_finish"} <= set(dir(Site))
