"""Whoever reaches the port and is no member: refused, and the run goes on."""

from __future__ import annotations

import ast
import base64
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.message_pb2 import ObjectTree, PullObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

from pfedmma_deploy import listening
from pfedmma_deploy.fleet import flower
from pfedmma_deploy.fleet.flower import PATHS
from pfedmma_deploy.fleet.keys import (
    issue_server_certificate,
    load_private,
    make_authority,
    make_site_key,
    public_pem,
)
from pfedmma_deploy.fleet.line import Line, RefusedError, UnreachableError
from pfedmma_deploy.fleet.link import Link
from pfedmma_deploy.fleet.messages import Note, Parcel
from tests.fleet.scripted import (
    LIMIT,
    PATIENCE,
    Scripts,
    Served,
    honest,
    make_fleet,
    options,
    wait_for,
)

PULL, PUSH = "/v1/fleet/pull-messages", "/v1/fleet/push-messages"
PARCEL = Note("hello").pack()
Headers = list[tuple[str, str]]


@dataclass
class Door:
    """A server's end with two sites, and what it takes to knock."""

    link: Link
    port: int
    trusted: ssl.SSLContext
    authority: str
    keys: dict[str, str] = field(default_factory=dict)
    """Private keys as PEM."""

    def line(self, site: str, address: str = "127.0.0.1", authority: str | None = None) -> Line:
        key = load_private(self.keys[site])
        return Line(f"{address}:{self.port}", authority or self.authority, key, LIMIT)

    def join(self) -> str:
        """One more site that nobody has used yet."""
        site = f"site-{len(self.keys)}"
        self.keys[site], public = make_site_key()
        self.link.allow(site, public)
        return site

    def node(self, site: str) -> int:
        return self.link.contacts[site].node_id

    def connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        return self.trusted.wrap_socket(plain, server_hostname="127.0.0.1")

    def knock(self, data: bytes) -> bytes:
        """What comes back until the server hangs up."""
        with self.connect() as tls:
            # The server may have had enough before all is sent.
            with contextlib.suppress(OSError):
                tls.sendall(data)
            answer = b""
            with contextlib.suppress(OSError):
                while chunk := tls.recv(65536):
                    answer += chunk
            return answer

    def status(self, data: bytes) -> int:
        answer = self.knock(data)
        return int(answer.split(b" ")[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def request(
    path: str, headers: Sequence[tuple[str, str]] = (), body: bytes = b"", method: str = "POST"
) -> bytes:
    """A request as bytes, with what every client sends, unless `headers` names it."""
    named = {name.lower() for name, _ in headers}
    usual = {
        "host": "127.0.0.1",
        "content-type": "application/protobuf",
        "content-length": str(len(body)),
        "connection": "close",
    }
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in usual.items() if name not in named]
    lines += [f"{name}: {value}" for name, value in headers if value != "left out"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def signed(private: str, stamp: str | None = None) -> Headers:
    """What a site's key makes of the time."""
    key = load_private(private)
    stamp = now().isoformat() if stamp is None else stamp
    signature = key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
    return headers(public_pem(key).encode(), stamp, signature)


def headers(public: bytes, stamp: str, signature: bytes) -> Headers:
    return [
        (FLEET_HTTP_PUBLIC_KEY_HEADER, base64.b64encode(public).decode()),
        (TIMESTAMP_HEADER, stamp),
        (FLEET_HTTP_SIGNATURE_HEADER, base64.b64encode(signature).decode()),
    ]


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Door]:
    make_authority(folder, "wards")
    certificate, key = issue_server_certificate(folder, ["127.0.0.1"])
    authority = (folder / "ca.pem").read_text()
    link = Link(100_000)
    with link.listening("127.0.0.1", 0, certificate, key) as port:
        door = Door(link, port, ssl.create_default_context(cadata=authority), authority)
        for site in ("a", "b"):
            door.keys[site], public = make_site_key()
            link.allow(site, public)
        yield door


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with opened(tmp_path_factory.mktemp("keys")) as found:
        yield found
        # Whatever the tests of this module did, a site still gets its messages.
        site = found.join()
        line = found.line(site)
        line.connect()
        assert found.link.send(site, PARCEL) is not None
        got = line.fetch()
        line.close()
        assert got is not None and got[1] == PARCEL


def pull(door: Door, site: str = "a") -> bytes:
    body: bytes = PullMessagesRequest(node=Node(node_id=door.node(site))).SerializeToString()
    return body


# What there is at all.


def test_what_is_served() -> None:
    assert {
        "/v1/fleet/activate-node",
        "/v1/fleet/deactivate-node",
        "/v1/fleet/send-node-heartbeat",
        "/v1/fleet/pull-messages",
        "/v1/fleet/pull-object",
        "/v1/fleet/push-messages",
        "/v1/fleet/push-object",
    } == PATHS
    # Flower's own: they submit runs, stream logs, hand out code and act as its server.
    others = {path for _, path in PROTOBUF_REQUEST_TYPES} - PATHS
    assert {"/v1/control/start-run", "/v1/control/stream-logs", "/v1/fleet/get-fab"} < others
    assert {"/v1/runtime/acquire-task", "/v1/fleet/register-node"} < others


OTHERS = sorted({path for _, path in PROTOBUF_REQUEST_TYPES} - PATHS)
ODD = [
    "/",
    "*",
    "/docs",
    "/redoc",
    "/openapi.json",
    "/health",
    "/metrics",
    "/v1/fleet",
    "/v1/fleet/",
    f"{PULL}/",
    f"/{PULL}",
    f"{PULL}/../register-node",
    f"{PULL}%00",
    f"{PULL.upper()}",
    f"http://127.0.0.1{PULL}",
]


def test_nothing_else_is_there_even_for_a_site(door: Door) -> None:
    for path in [*OTHERS, *ODD]:
        data = request(path, signed(door.keys["a"]), pull(door))
        assert door.status(data) in (400, 404), path


@pytest.mark.parametrize("method", "GET HEAD PUT PATCH DELETE OPTIONS TRACE CONNECT".split())
def test_other_methods(method: str, door: Door) -> None:
    for path in sorted(PATHS):
        data = request(path, signed(door.keys["a"]), pull(door), method)
        assert door.status(data) in (400, 404), path


def test_nothing_of_the_fleet_runs_code() -> None:
    """By construction: what could run code is not in the modules that read messages."""
    banned = {"pickle", "marshal", "shelve", "subprocess", "importlib", "runpy", "ctypes"}
    calls = {"eval", "exec", "compile", "__import__"}
    folder = Path(flower.__file__).parent
    for path in sorted(folder.glob("*.py")):
        if path.name == "rehearse.py":
            continue  # starts the commands that users type; reads no message
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                assert not banned & {name.name.split(".")[0] for name in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in banned, path
            elif isinstance(node, ast.Call):
                assert getattr(node.func, "id", "") not in calls, path
                assert getattr(node.func, "attr", "") not in ("system", "popen"), path


# Who may come in.


def of_another_federation(door: Door) -> Headers:
    return signed(make_site_key()[0])


def anothers_signature(door: Door) -> Headers:
    """The member's key, and the signature of a stranger."""
    stamp = now().isoformat()
    public = public_pem(load_private(door.keys["a"])).encode()
    by_stranger = load_private(make_site_key()[0]).sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
    return headers(public, stamp, by_stranger)


def another_stamp(door: Door) -> Headers:
    made = signed(door.keys["a"])
    return [made[0], (TIMESTAMP_HEADER, now().isoformat()), made[2]]


def stamped(change: Callable[[datetime], str]) -> Callable[[Door], Headers]:
    return lambda door: signed(door.keys["a"], change(now()))


def with_key(public: bytes) -> Callable[[Door], Headers]:
    return lambda door: headers(public, now().isoformat(), b"signature")


def rsa_key() -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


STRANGERS: dict[str, Callable[[Door], Headers]] = {
    "no key": lambda door: [],
    "another federation's key": of_another_federation,
    "another's signature": anothers_signature,
    "another stamp than the signed": another_stamp,
    "replayed after five minutes": stamped(lambda at: (at - timedelta(seconds=301)).isoformat()),
    "from the future": stamped(lambda at: (at + timedelta(seconds=60)).isoformat()),
    "a stamp without zone": stamped(lambda at: at.replace(tzinfo=None).isoformat()),
    "the year 1": stamped(lambda at: "0001-01-01T00:00:00+23:59"),
    "the year 9999": stamped(lambda at: "9999-12-31T23:59:59-23:59"),
    "no stamp": stamped(lambda at: "yesterday"),
    "no PEM": with_key(b"\0" * 100),
    "an RSA key": with_key(rsa_key()),
    "a key of 10 KB": with_key(b"A" * 10_000),
    "no base64": lambda door: [*signed(door.keys["a"])[:2], (FLEET_HTTP_SIGNATURE_HEADER, "ä*")],
}


@pytest.mark.parametrize("who", sorted(STRANGERS))
def test_strangers(who: str, door: Door) -> None:
    body = pull(door)
    answer = door.knock(request(PULL, STRANGERS[who](door), body))
    assert answer.startswith(b"HTTP/1.1 401 ") and answer.endswith(b"\r\n\r\n")


def test_a_revoked_key(door: Door) -> None:
    site = door.join()
    line = door.line(site)
    line.connect()
    door.link.forbid(site)
    with pytest.raises(RefusedError, match="the server does not know this invitation") as raised:
        line.fetch()
    assert raised.value.is_unknown
    line.close()


def test_a_site_that_is_removed_while_the_server_runs(tmp_path: Path) -> None:
    """Its invitation opens nothing a moment later, and the others train without it."""
    fleet = make_fleet(tmp_path / "wards", ["a", "b"])
    over = threading.Event()

    def patient(note: Note) -> Parcel | None:
        assert over.wait(PATIENCE)
        return honest(1)(note)

    answers = {"a": patient, "b": lambda note: None}
    with Served(fleet) as served, Scripts(served, answers) as sites:
        wait_for(lambda: bool(sites["b"].tasks))
        fleet.remove("b")
        wait_for(lambda: not sites["b"].is_alive())
        assert "the server does not know this invitation" in str(sites["b"].error)
        over.set()
        result = served.end()
    (record,) = result.run.rounds
    assert (record["clients"], record["absent"]) == (["a"], {"b": "was removed by the operator"})


def test_without_tls(door: Door) -> None:
    with socket.create_connection(("127.0.0.1", door.port), timeout=PATIENCE) as plain:
        plain.sendall(request(PULL, signed(door.keys["a"]), pull(door)))
        answer = b""
        with contextlib.suppress(OSError):
            while chunk := plain.recv(4096):
                answer += chunk
    assert b"HTTP" not in answer


def test_a_server_that_another_authority_signed(door: Door, tmp_path: Path) -> None:
    make_authority(tmp_path, "wards")
    line = door.line("a", authority=(tmp_path / "ca.pem").read_text())
    with pytest.raises(UnreachableError, match="certificate verify failed"):
        line.connect()
    line.close()


def test_a_server_of_another_name(door: Door) -> None:
    """Its certificate is right, but for 127.0.0.1 only."""
    line = door.line("a", address="localhost")
    with pytest.raises(UnreachableError, match="certificate is not valid for 'localhost'"):
        line.connect()
    line.close()


def test_two_with_one_invitation(door: Door) -> None:
    site = door.join()
    first, second = door.line(site), door.line(site)
    first.connect()
    with pytest.raises(RefusedError, match="another process of this site is at work") as raised:
        second.connect()
    assert raised.value.is_taken
    first.close()
    second.close()


# Requests that are none, from a site that has turned bad.

CHUNKED = b"4\r\nabcd\r\n0\r\n\r\n"
MALFORMED: dict[str, tuple[Headers, bytes, set[int]]] = {
    "no length": ([("content-length", "left out")], b"", {411}),
    "a negative length": ([("content-length", "-5")], b"", {400}),
    "a length that is no number": ([("content-length", "5e3")], b"", {400}),
    "a length of thirty digits": ([("content-length", "9" * 30)], b"", {400}),
    "two lengths": ([("content-length", "5"), ("Content-Length", "6")], b"hello!", {400}),
    "2 GB": ([("content-length", "2000000000")], b"", {413}),
    "9 KB to a question": ([], b"\0" * 9_000, {413}),
    "chunks": (
        [("content-length", "left out"), ("transfer-encoding", "chunked")],
        CHUNKED,
        {400},
    ),
    "chunks and a length": (
        [("content-length", "4"), ("transfer-encoding", "chunked")],
        CHUNKED,
        {400},
    ),
    "an encoding nobody has": ([("transfer-encoding", "gzip")], b"", {400, 501}),
    "a header of 70 KB": ([("x-long", "x" * 70_000)], b"", {400, 401, 431}),
    "a header twice": ([(TIMESTAMP_HEADER, "2026-01-01")], b"", {400}),
    "another content type": ([("content-type", "application/json")], b"{}", {415}),
    "no protobuf": ([], b"\xff" * 50, {400}),
    "a protobuf of something else": ([], Note("hello").pack().header.encode(), {400, 401}),
    "nothing": ([], b"", {401}),
}


@pytest.mark.parametrize("what", sorted(MALFORMED))
def test_malformed_requests(what: str, door: Door) -> None:
    extra, body, expected = MALFORMED[what]
    data = request(PULL, [*signed(door.keys["a"]), *extra], body)
    assert door.status(data) in expected


def test_a_body_longer_than_it_says(door: Door) -> None:
    """A question of four bytes by its head, and 200 kB in chunks, in a field that nobody knows."""
    padding = PullMessagesRequest()
    padding.MergeFromString(b"\x82\x01\xc0\x9a\x0c" + bytes(200_000))
    body = pull(door) + padding.SerializeToString()
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    extra = [("content-length", "4"), ("transfer-encoding", "chunked")]
    assert len(body) > 200_000
    assert door.status(request(PULL, [*signed(door.keys["a"]), *extra], chunks)) == 400


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 1000,
        b"GET / HTTP/0.9\r\n\r\n",
        b"POST /v1/fleet/pull-messages HTTP/1.1\r\n\r\n",
        b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"x" * 200_000,
    ],
)
def test_what_is_no_request(data: bytes, door: Door) -> None:
    assert door.status(data) in (0, 400, 404)


def test_two_gigabytes_are_not_taken_in(door: Door) -> None:
    """Refused by its head; of what follows only what lies in buffers is taken, and nothing kept."""
    site = door.join()
    line = door.line(site)
    line.connect()
    ticket = door.link.send(site, PARCEL)
    assert ticket is not None
    process = line._client._interceptors[0].id  # type: ignore[attr-defined]
    extra = [("content-length", "2000000000"), (flower.PROCESS_HEADER, process)]
    taken, zeros = 0, bytes(1_000_000)
    with door.connect() as tls:
        tls.sendall(request("/v1/fleet/push-object", [*signed(door.keys[site]), *extra]))
        with contextlib.suppress(OSError):
            while taken < 2_000_000_000:
                tls.sendall(zeros)
                taken += len(zeros)
    assert taken < 64_000_000
    with pytest.raises(Exception, match=r"^sent 2,000,000,000 bytes, at most 100,000$"):
        door.link.answer(ticket)
    line.close()


def test_an_upload_that_broke_off_may_be_sent_again(door: Door) -> None:
    """A request's head takes its length from what the site may send; a broken one gives it back."""
    site = door.join()
    contact = door.link.contacts[site]
    contact.budget = 100_000
    extra = [("content-length", "60000")]
    for _ in range(3):
        with door.connect() as tls:
            tls.sendall(request("/v1/fleet/push-object", [*signed(door.keys[site]), *extra]))
            tls.sendall(bytes(10_000))
            wait_for(lambda: contact.budget == 40_000)
        wait_for(lambda: contact.budget == 100_000)


# A site in the name of another.


def test_another_sites_messages(door: Door) -> None:
    data = request(PULL, signed(door.keys["a"]), pull(door, "b"))
    assert door.status(data) == 401


@pytest.mark.parametrize("path", ["/v1/runtime/pull-object", "/v1/control/list-runs", "/x"])
def test_another_sites_messages_by_way_of_the_host(path: str, door: Door) -> None:
    """Flower looks up in the address what it is asked and by whom; this header is part of it."""
    other = door.join()
    line = door.line(other)
    line.connect()
    assert door.link.send(other, PARCEL) is not None
    body = PullObjectRequest(node=Node(node_id=door.node(other))).SerializeToString()
    data = request(PULL, [*signed(door.keys["a"]), ("host", f"x{path}?")], body)
    assert door.status(data) in (400, 401)
    assert line.fetch() is not None
    line.close()


@dataclass
class Mole:
    """A site with a right key that pushes what it likes."""

    door: Door
    site: str
    line: Line
    ticket: str

    def push(self, *, trees: int = 1, messages: int = 1, parts: int = 1, **about: object) -> int:
        """HTTP status of a push; 200 where the server took it."""
        values: dict[str, object] = {
            "run_id": self.door.link._run_id,
            "message_id": "",
            "src_node_id": self.door.node(self.site),
            "dst_node_id": 1,
            "reply_to_message_id": self.ticket,
            "group_id": "",
            "created_at": now().timestamp(),
            "ttl": 3600.0,
            "message_type": "train",
        }
        metadata = Metadata(**{**values, **about})  # type: ignore[arg-type]
        message = make_message(metadata, flower.parcel_record(PARCEL))
        name = message.object_id
        message.metadata.__dict__["_message_id"] = name
        children = [ObjectTree(object_id=f"{i:064x}") for i in range(parts - 1)]
        body = PushMessagesRequest(
            node=Node(node_id=self.door.node(self.site)),
            messages_list=[message_to_proto(message)] * messages,
            message_object_trees=[ObjectTree(object_id=name, children=children)] * trees,
        ).SerializeToString()
        process = self.line._client._interceptors[0].id  # type: ignore[attr-defined]
        known = [*signed(self.door.keys[self.site]), (flower.PROCESS_HEADER, process)]
        return self.door.status(request(PUSH, known, body))


@pytest.fixture
def mole(door: Door) -> Iterator[Mole]:
    site = door.join()
    line = door.line(site)
    line.connect()
    ticket = door.link.send(site, PARCEL)
    assert ticket is not None
    yield Mole(door, site, line, ticket)
    door.link.close(ticket)
    line.close()


def test_an_answer_of_its_own(mole: Mole) -> None:
    assert mole.push() == 200


def test_an_answer_in_another_sites_name(mole: Mole) -> None:
    assert mole.push(src_node_id=mole.door.node("b")) == 403


def test_a_task_in_the_servers_name(mole: Mole) -> None:
    """Flower would hand it to the other site."""
    other = mole.door.join()
    line = mole.door.line(other)
    line.connect()
    target = mole.door.node(other)
    assert mole.push(src_node_id=1, dst_node_id=target, reply_to_message_id="") == 403
    assert line.fetch() is None
    line.close()


def test_an_answer_to_what_another_site_was_asked(mole: Mole) -> None:
    other = mole.door.join()
    line = mole.door.line(other)
    line.connect()
    ticket = mole.door.link.send(other, PARCEL)
    assert ticket is not None
    assert mole.push(reply_to_message_id=ticket) == 403
    assert mole.door.link.answer(ticket) is None
    mole.door.link.close(ticket)
    line.close()


@pytest.mark.parametrize("parts", [9, 60])
def test_an_answer_of_many_parts(parts: int, mole: Mole) -> None:
    assert mole.push(parts=parts) == 403


@pytest.mark.parametrize(("messages", "trees"), [(0, 0), (2, 2), (1, 0), (0, 1)])
def test_not_one_message(messages: int, trees: int, mole: Mole) -> None:
    assert mole.push(messages=messages, trees=trees) == 403


def test_more_parts_beside_an_answer(mole: Mole) -> None:
    """The same again is let through, where a connection broke; other parts are not."""
    at = now().timestamp()
    assert mole.push(created_at=at, parts=2) == 200
    assert mole.push(created_at=at, parts=2) == 200
    assert mole.push(created_at=at, parts=3) == 403
    assert mole.push(created_at=at + 1) == 403


def test_a_late_answer_is_passed_over(mole: Mole) -> None:
    mole.door.link.close(mole.ticket)
    before = len(mole.door.link._state.object_store)
    assert mole.push() == 200
    assert len(mole.door.link._state.object_store) == before


def test_a_key_is_not_another_sites(door: Door) -> None:
    """`activate-node` names a key in its body too."""
    public = public_pem(load_private(door.keys["b"])).encode()
    body = ActivateNodeRequest(public_key=public, heartbeat_interval=60).SerializeToString()
    data = request("/v1/fleet/activate-node", signed(door.keys["a"]), body)
    assert door.status(data) == 401


# Connections that say nothing.


def is_closed(tls: ssl.SSLSocket) -> bool:
    try:
        return tls.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_who_says_nothing_is_hung_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "PATIENCE", 0.3)
    with opened(tmp_path) as door, door.connect() as silent, door.connect() as slow:
        slow.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nx-slow: ")
        silent.settimeout(PATIENCE)
        assert is_closed(silent)
        slow.settimeout(PATIENCE)
        assert is_closed(slow)


def test_the_oldest_of_too_many_is_hung_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "MAX_SILENT", 2)
    with opened(tmp_path) as door, contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(door.connect()) for _ in range(3)]
        waiting[0].settimeout(PATIENCE)
        assert is_closed(waiting[0])
        for tls in waiting[1:]:
            tls.settimeout(0.2)
            assert not is_closed(tls)


def test_a_server_may_have_more_connections_than_a_shell_allows(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(1000, soft), hard))
        with opened(tmp_path):
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_run_under_attack_ends_with_the_right_result(tmp_path: Path) -> None:
    """Two rounds of 1 and 3 with equal weights: 2 and 2, so 4 in all."""
    fleet = make_fleet(tmp_path / "wards", ["a", "b"], options(rounds=2))
    over = threading.Event()
    knocks: list[int] = []
    with Served(fleet) as served, contextlib.ExitStack() as stack:
        trusted = ssl.create_default_context(cafile=str(fleet.keys / "ca.pem"))
        door = Door(Link(1), served.port, trusted, "")
        silent = [stack.enter_context(door.connect()) for _ in range(200)]

        def knock() -> None:
            # Until the port is closed.
            with contextlib.suppress(OSError):
                while not over.is_set():
                    knocks.append(door.status(request(PULL, of_another_federation(door))))
                    knocks.append(door.status(request("/v1/control/start-run")))
                    door.status(b"\0" * 1000)

        knocking = threading.Thread(target=knock, daemon=True)
        knocking.start()
        wait_for(lambda: len(knocks) > 4)
        with Scripts(served, {"a": honest(1), "b": honest(3)}) as sites:
            result = served.end()
            start = sites["a"].tasks[0].tensors
        over.set()
        knocking.join(PATIENCE)
    assert len(silent) == 200 and set(knocks[:4]) == {401, 404}
    assert [record["clients"] for record in result.run.rounds] == [["a", "b"], ["a", "b"]]
    for name, value in result.run.load_shared().items():
        torch.testing.assert_close(value, start[name] + 4)
