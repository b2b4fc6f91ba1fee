"""All that is internal to Flower 1.41, behind two classes: `Link` (server) and `Line` (site).

Flower's SuperLink would listen with its control and runtime interfaces on the same port as with the
one for sites, and neither asks who calls: whoever reaches it could run code on the sites. Here the
server's process has Flower's link state in memory and answers the sites' paths only (`PATHS`), over
TLS, to registered keys. Nothing is ever started by a message: a site runs what is installed there.

A ticket is the id of Flower's message, and an answer is the message that replies to it. A site asks
for work only when it has none, so a message that was fetched and not answered when its site asks
again was lost with a process or a connection, and is handed out once more.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import itertools
import logging
import os
import secrets
import ssl
import threading
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, ClassVar, Final

# Before Flower is loaded: it would tell its makers that it runs, and ask them for news.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.app.metadata import Metadata
from flwr.common.constant import (
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    SUPERLINK_NODE_ID,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
    Status,
)
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    NOOP_FEDERATION_ID,
    TaskType,
)
from flwr.supercore.date import now
from flwr.supercore.error import http_error_translator
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import NoObjectInStoreError
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.supercore.run import RunStatus
from flwr.superlink.federation.noop_federation_manager import NoOpFederationManager
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.routers.fleet.router import router as fleet_router
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as HttpMessage
from uvicorn.protocols.http.h11_impl import H11Protocol

from pfedmma_deploy.errors import FleetError
from pfedmma_deploy.fleet.keys import PrivateKey, public_pem
from pfedmma_deploy.fleet.messages import MAX_HEADER, Parcel

_PREFIX: Final = "/v1/fleet/"
ACTIVATE, DEACTIVATE = f"{_PREFIX}activate-node", f"{_PREFIX}deactivate-node"
PULL: Final = f"{_PREFIX}pull-messages"
PUSHES: Final = (f"{_PREFIX}push-messages", f"{_PREFIX}push-object")
PATHS: Final = frozenset(
    {ACTIVATE, DEACTIVATE, PULL, *PUSHES}
    | {f"{_PREFIX}{name}" for name in ("send-node-heartbeat", "pull-object")}
)
"""All that the server answers; anything else is 404."""
PROCESS_HEADER: Final = "x-pfedmma-process"
"""Tells two processes with one invitation apart."""
GONE_AFTER: Final = 20.0
"""Seconds without a sign of life after which a site counts as gone."""
SMALL_BODY: Final = 8_192
"""Bytes of a request that carries no tensors, at most."""
MAX_OBJECTS: Final = 8
"""Flower's parts of one message, at most; ours have three."""
PATIENCE: Final = 10.0
"""Seconds in which a new connection must have sent the head of a request."""
MAX_SILENT: Final = 256
"""Connections without a request that are kept at once; beyond, the oldest is closed."""
# Flower's clocks do not decide here: a message lives until the server takes it back.
_FOR_EVER: Final = 3e7
_INTERVAL: Final = 1800.0
_RECORD: Final = "parcel"

logging.getLogger("flwr").setLevel(logging.CRITICAL)


class _LinkState(InMemoryLinkState):
    """Flower's state with a run that is always running: our own checkpoint says how far it is."""

    def get_run_status(self, run_ids: set[int]) -> dict[int, RunStatus]:
        """See Flower."""
        return {id: RunStatus(Status.RUNNING, "", "") for id in run_ids}

    def activate_node(self, node_id: int, heartbeat_interval: float) -> bool:
        """See Flower, which would refuse a site that comes back sooner than it was missed."""
        with self.lock:
            self.deactivate_node(node_id)
            return super().activate_node(node_id, heartbeat_interval)


def largest(payload: int) -> int:
    """Bytes of the largest message with this many bytes of tensors, and all around them."""
    return 2 * payload + 4 * MAX_HEADER + SMALL_BODY


@dataclass
class Contact:
    """What the server knows of a site's connection."""

    node_id: int
    public_key: bytes
    process: str = ""
    """Which process of the site is talking; empty before the first and after a goodbye."""
    last_seen: float | None = None
    """`time.monotonic()` of its last request; None before the first."""
    received: int = 0
    """HTTP bytes from the site, without TLS."""
    sent: int = 0
    """HTTP bytes to the site, without TLS."""
    budget: int = 0
    """Bytes that it may still send in answer to what it was sent."""
    excess: int = 0
    """Bytes of an answer larger than any can be, which was not read; 0 where there was none."""


class Link:
    """The server's end: sends parcels to sites, and looks for their answers."""

    def __init__(self, limit: int) -> None:
        """`limit`: bytes of the largest answer that is to be expected, with all around it."""
        self.limit = limit
        self.contacts: dict[str, Contact] = {}
        self._site_by_key: dict[bytes, str] = {}
        self._open: dict[str, str] = {}  # site by ticket
        self._lock = threading.RLock()
        self._state = _LinkState(NoOpFederationManager(), InMemoryObjectStore())
        self._run_id = self._state.create_run(
            None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )

    # Who may talk.

    def allow(self, site: str, public_key: str) -> bool:
        """Register a site's key, PEM; False where it is registered already."""
        key = public_key.encode()
        with self._lock:
            if site in self.contacts and self.contacts[site].public_key == key:
                return False
            self.forbid(site)
            node_id = self._state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 0)
            self.contacts[site] = Contact(node_id, key)
            self._site_by_key[key] = site
        return True

    def forbid(self, site: str) -> None:
        """Take a site's key back; its next request is refused."""
        with self._lock:
            contact = self.contacts.pop(site, None)
            if contact is not None:
                del self._site_by_key[contact.public_key]
                self._state.delete_node(NOOP_FLWR_AID, contact.node_id)
            for ticket in [each for each, addressee in self._open.items() if addressee == site]:
                self.close(ticket)

    def is_here(self, site: str) -> bool:
        """Whether the site has been heard of lately, and not to say goodbye."""
        contact = self.contacts.get(site)
        if contact is None or contact.last_seen is None or not contact.process:
            return False
        return time.monotonic() - contact.last_seen < GONE_AFTER

    def forgive(self, seconds: float) -> None:
        """Do not count a time in which this process itself stood still."""
        for contact in self.contacts.values():
            if contact.last_seen is not None:
                contact.last_seen += seconds

    # What is sent and answered.

    def send(self, site: str, parcel: Parcel) -> str | None:
        """Lay a parcel ready for a site; returns its ticket, or None where it was never here."""
        contact = self.contacts.get(site)
        if contact is None or contact.last_seen is None:
            return None
        metadata = Metadata(
            run_id=self._run_id,
            message_id="",
            src_node_id=SUPERLINK_NODE_ID,
            dst_node_id=contact.node_id,
            reply_to_message_id="",
            # Two messages of equal content to one site would be one to Flower.
            group_id=secrets.token_hex(8),
            created_at=now().timestamp(),
            ttl=_FOR_EVER,
            message_type="train",
        )
        message = make_message(metadata, _record(parcel))
        with self._lock, no_object_id_recompute():
            ticket: str = message.object_id
            message.metadata.__dict__["_message_id"] = ticket
            session = self._state.start_session(self._run_id)
            is_stored, missing = self._state.store_message_and_object_tree(
                remove_content_from_message(message), get_object_tree(message), session
            )
            if not is_stored:
                return None
            objects = get_all_nested_objects(message)
            for name in missing:
                self._state.store_object(self._run_id, session, name, objects[name].deflate())
            self._open[ticket] = site
            contact.budget, contact.excess = self.limit, 0
        return ticket

    def answer(self, ticket: str) -> Parcel | None:
        """What the site answered, once it is all here; the ticket is closed then.

        Raises:
            FleetError: what it sent is no parcel; the ticket is closed as well.
        """
        with self._lock:
            contact = self.contacts.get(self._open.get(ticket, ""))
            if contact is not None and contact.excess:
                self.close(ticket)
                raise FleetError(f"sent {contact.excess:,} bytes, at most {self.limit:,}")
            reply = self._state.message_ins_id_to_message_res_id.get(ticket)
            if reply is None:
                return None
            try:
                parcel = self._inflate(reply)
            except FleetError:
                self.close(ticket)
                raise
            except Exception as error:
                # Whatever a site makes Flower stumble over is that site's mistake alone.
                self.close(ticket)
                raise FleetError(f"a message that Flower cannot read ({error})") from error
            if parcel is not None:
                self.close(ticket)
            return parcel

    def close(self, ticket: str) -> None:
        """Take a parcel back: an answer to it is no longer accepted."""
        with self._lock:
            self._open.pop(ticket, None)
            reply = self._state.message_ins_id_to_message_res_id.get(ticket)
            self._state.delete_messages({ticket})
            for name in filter(None, (ticket, reply)):
                self._state.object_store.delete(name)

    def _inflate(self, reply: str) -> Parcel | None:
        contents = self._contents(reply)
        return None if contents is None else _parcel(inflate_object_from_contents(reply, contents))

    def _contents(self, reply: str) -> dict[str, bytes] | None:
        """The parts of a message, once all are here."""
        tree = self._state.object_store.get_object_tree(reply)
        names = [part.object_id for part in iterate_object_tree(tree)]
        if len(names) > MAX_OBJECTS:
            raise FleetError(f"a message of {len(names)} parts, at most {MAX_OBJECTS}")
        contents: dict[str, bytes] = {}
        for name in names:
            content = self._state.get_object(self._run_id, name)
            if not content:
                return None
            contents[name] = content
        return contents

    def _hand_out_again(self, site: str) -> None:
        """Messages that the site fetched and has nothing to show for: see the module's text."""
        with self._lock:
            for ticket, addressee in self._open.items():
                message = self._state.message_ins_store.get(ticket)
                if addressee == site and message is not None and not self._has_answer(ticket):
                    message.metadata.delivered_at = ""

    def _has_answer(self, ticket: str) -> bool:
        """Whether a whole answer is here; the beginning of one is thrown away."""
        reply = self._state.message_ins_id_to_message_res_id.get(ticket)
        if reply is None:
            return False
        with contextlib.suppress(FleetError):
            if self._contents(reply) is None:
                del self._state.message_ins_id_to_message_res_id[ticket]
                del self._state.message_res_store[reply]
                self._state.object_store.delete(reply)
                return False
        return True

    def is_answer(self, request: PushMessagesRequest) -> bool:
        """Whether a site's push is one answer, in its own name, and the only one to its question.

        Flower asks for a key only: it would store a message in another's name, one that pretends to
        come from the server, and parts without end beside an answer that it has. What comes too
        late is an answer too; Flower forgets it.
        """
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            return False
        (message,), (tree,) = request.messages_list, request.message_object_trees
        about, ticket = message.metadata, message.metadata.reply_to_message_id
        parts = list(itertools.islice(iterate_object_tree(tree), MAX_OBJECTS + 1))
        if not ticket or request.node.node_id != about.src_node_id:
            return False
        if about.message_id != tree.object_id or len(parts) > MAX_OBJECTS:
            return False
        with self._lock:
            if ticket not in self._open:
                return True
            contact = self.contacts.get(self._open[ticket])
            known = self._state.message_ins_id_to_message_res_id.get(ticket, about.message_id)
            return (
                contact is not None
                and contact.node_id == about.src_node_id
                # The same again, where the connection broke; nothing else under the same name.
                and known == about.message_id
                and self._known_tree(known) in (None, tree)
            )

    def _known_tree(self, name: str) -> ObjectTree | None:
        try:
            return self._state.object_store.get_object_tree(name)
        except NoObjectInStoreError:
            return None

    # The network.

    @contextlib.contextmanager
    def listening(self, host: str, port: int, certificate: Path, key: Path) -> Iterator[int]:
        """Answer sites while the block runs; yields the port, which was chosen where `port` is 0.

        Raises:
            FleetError: the port cannot be opened.
        """
        config = uvicorn.Config(
            self._app(),
            host=host,
            port=port,
            ssl_certfile=certificate,
            ssl_keyfile=str(key),
            # The strict parser: a request that could be read in two ways is refused.
            http=_Impatient,
            # Not another one where uvloop happens to be installed.
            loop="asyncio",
            ws="none",
            lifespan="off",
            access_log=False,
            server_header=False,
            log_config=None,
            # Else whoever reaches the port writes into the operator's terminal.
            log_level=logging.CRITICAL + 1,
            timeout_graceful_shutdown=5,
        )
        _allow_many_files()
        server = uvicorn.Server(config)
        thread = threading.Thread(target=self._serve, args=(server,), daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.02)
        if not server.started:
            raise FleetError(
                f"port {port} of {host} cannot be opened: another program may be using it. Name "
                "another with --listen HOST:PORT."
            )
        try:
            yield server.servers[0].sockets[0].getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(timeout=10)

    @staticmethod
    def _serve(server: uvicorn.Server) -> None:
        # Uvicorn ends a program whose port is taken; only this thread is to end.
        with contextlib.suppress(SystemExit):
            server.run()

    def _app(self) -> ASGIApp:
        app = FastAPI(
            docs_url=None,
            redoc_url=None,
            openapi_url=None,
            middleware=[
                Middleware(BaseHTTPMiddleware, dispatch=http_error_translator),
                Middleware(ProtobufTranslationMiddleware),
                Middleware(NodeAuthMiddleware),
                Middleware(BaseHTTPMiddleware, dispatch=self._only_answers),
            ],
        )
        # Flower's handlers find the state by asking for a factory of it.
        app.state.linkstate_factory = _Factory(self._state)
        app.state.enable_supernode_auth = True
        app.include_router(fleet_router)
        return _Gate(app, self)

    async def _only_answers(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        push = getattr(request.state, "protobuf_request", None)
        if isinstance(push, PushMessagesRequest) and not self.is_answer(push):
            # Flower's own errors are JSON, and only those get past its translation.
            return JSONResponse({"detail": "no answer of this site"}, 403)
        return await call_next(request)

    def admit(self, path: str, headers: Mapping[str, str]) -> tuple[int, Contact | None]:
        """HTTP status for a request's head, before its body is read, and whose request it is."""
        site = self._site_by_key.get(_signer(headers, self._site_by_key))
        contact = None if site is None else self.contacts.get(site)
        if site is None or contact is None:
            return 401, None
        process = headers.get(PROCESS_HEADER, "")
        if contact.process != process and self.is_here(site):
            return 409, contact
        length = headers.get("content-length", "")
        if not length.isdecimal():
            return 411, contact
        # A site may send as much as an answer can be, and only when it was asked.
        if path in PUSHES and int(length) > SMALL_BODY:
            if int(length) > self.limit:
                contact.excess = int(length)
            if int(length) > contact.budget:
                return 413, contact
            contact.budget -= int(length)
        elif int(length) > SMALL_BODY:
            return 413, contact
        contact.last_seen = time.monotonic()
        if path == ACTIVATE:
            with self._lock:
                # What was on its way when the connection broke is sent once more.
                if site in self._open.values():
                    contact.budget = self.limit
        # After a goodbye the site is gone at once, and may come back as another process.
        contact.process = "" if path == DEACTIVATE else process
        if path == PULL:
            self._hand_out_again(site)
        return 200, contact


@dataclass(frozen=True)
class _Factory:
    link_state: InMemoryLinkState

    def state(self) -> InMemoryLinkState:
        return self.link_state


class _Gate:
    """In front of Flower's routes: who nobody knows is sent away before anything is read."""

    def __init__(self, app: ASGIApp, link: Link) -> None:
        self.app = app
        self.link = link

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        if path not in PATHS or scope["method"] != "POST":
            await _refuse(send, 404)
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        # What is said twice could be read in two ways; a body of unknown length has no limit.
        if len(headers) < len(scope["headers"]) or "transfer-encoding" in headers:
            await _refuse(send, 400)
            return
        status, contact = self.link.admit(path, headers)
        if status != 200 or contact is None:
            await _refuse(send, status)
            return
        length, arrived = int(headers["content-length"]), 0
        contact.received += _head_size(scope["headers"]) + length

        async def take() -> HttpMessage:
            nonlocal arrived
            message = await receive()
            arrived += len(message.get("body", b""))
            return message

        async def count(message: HttpMessage) -> None:
            contact.sent += _head_size(message.get("headers", [])) + len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, take, count)
        finally:
            if path in PUSHES and length > SMALL_BODY and arrived < length:
                # The connection broke: the site may send it again.
                contact.budget += length


def _allow_many_files() -> None:
    """As many as this user may: strangers who connect would use up the usual thousand."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Impatient(H11Protocol):
    """Hangs up on whoever says nothing, or too slowly; uvicorn waits for ever for a first head."""

    _silent: ClassVar[dict[_Impatient, asyncio.TimerHandle]] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._silent[self] = self.loop.call_later(PATIENCE, self._hang_up)
        if len(self._silent) > MAX_SILENT:
            next(iter(self._silent))._hang_up()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None:
            self._settle()

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """At the server's end; else it would wait for everybody's farewell."""
        if self.cycle is None or self.cycle.response_complete:  # type: ignore[redundant-expr]
            self._hang_up()
        else:
            super().shutdown()

    def _hang_up(self) -> None:
        self._settle()
        self.transport.abort()

    def _settle(self) -> None:
        timer = self._silent.pop(self, None)
        if timer is not None:
            timer.cancel()


async def _refuse(send: Send, status: int) -> None:
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _head_size(headers: Any) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers)


def _signer(headers: Mapping[str, str], known: Container[bytes]) -> bytes:
    """Which of the known keys a request is signed with; empty where none is, or not lately."""
    try:
        key = base64.b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER.lower()], validate=True)
        signature = base64.b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER.lower()], validate=True)
        stamp = headers[TIMESTAMP_HEADER.lower()]
        age = (now() - datetime.fromisoformat(stamp)).total_seconds()
        is_recent = -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE
        # A stranger's key is not even parsed.
        if is_recent and key in known and _is_signed(key, stamp, signature):
            return key
    except (KeyError, ValueError, TypeError, OverflowError, binascii.Error):
        pass
    return b""


def _is_signed(key: bytes, stamp: str, signature: bytes) -> bool:
    return verify_signature(bytes_to_public_key(key), stamp.encode(), signature)


def _record(parcel: Parcel) -> RecordDict:
    record = ConfigRecord({"header": parcel.header, "tensors": parcel.tensors})
    return RecordDict({_RECORD: record})


def _parcel(message: object) -> Parcel:
    if not isinstance(message, Message) or not message.has_content():
        raise FleetError("a message without content")
    record = message.content.get(_RECORD)
    if not isinstance(record, ConfigRecord):
        raise FleetError("a message of other content than a parcel")
    header, tensors = record.get("header"), record.get("tensors")
    if not isinstance(header, str) or not isinstance(tensors, bytes):
        raise FleetError("a parcel without header and tensors")
    return Parcel(header, tensors)


class UnreachableError(FleetError):
    """The server does not answer; it may later."""


class RefusedError(FleetError):
    """The server answers, and says no."""

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.is_unknown = status == 401
        """It does not know who is asking."""
        self.is_taken = status == 409
        """Another process of this site is at work."""


class Line:
    """A site's end: fetches parcels and answers them. One at a time, from one thread.

    Signs of life have a connection of their own: a parcel may take longer than they may be missed.
    """

    def __init__(self, address: str, authority: str, key: PrivateKey, limit: int) -> None:
        """A line that is not connected yet.

        `authority` is the PEM of the certificate that the server's must be signed by, `limit` the
        bytes of the largest answer that is read.
        """
        trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusted.load_verify_locations(cadata=authority)
        process = _Process(secrets.token_hex(8))
        signing = NodeAuthHttpInterceptor(key, key.public_key())
        self._client, self._pulse = (
            _Client(f"https://{address}", [process, signing], trusted, limit) for _ in range(2)
        )
        self._key = key
        self._node = Node()
        self._is_heard = False

    def connect(self) -> None:
        """Say that the site is here. Raises, as all methods, `UnreachableError`, `RefusedError`."""
        request = ActivateNodeRequest(
            public_key=public_pem(self._key).encode(), heartbeat_interval=_INTERVAL
        )
        with self._calling():
            self._node = Node(node_id=self._client.ActivateNode(request).node_id)

    def beat(self) -> None:
        """Show a sign of life; from any thread."""
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=_INTERVAL)
        with self._calling():
            self._pulse.SendNodeHeartbeat(request)

    def fetch(self) -> tuple[Message, Parcel] | None:
        """The next parcel and what to answer it by, or None where there is none."""
        with self._calling():
            found = self._client.PullMessages(PullMessagesRequest(node=self._node))
            if not found.messages_list:
                return None
            message, parts = _announced(found)
            contents = {}
            for name in parts:
                request = PullObjectRequest(
                    node=self._node, run_id=message.metadata.run_id, object_id=name
                )
                contents[name] = self._client.PullObject(request).object_content
        if not all(contents.values()):
            return None  # taken back in the meantime
        try:
            return message, _parcel(inflate_object_from_contents(parts[-1], contents))
        except FleetError:
            raise
        except Exception as error:
            raise FleetError(f"the server sent what Flower cannot read ({error})") from error

    def reply(self, message: Message, parcel: Parcel) -> bool:
        """Answer a parcel; one that was taken back in the meantime is passed over in silence.

        Returns:
            False: the server that asked is no more; the one in its place asks itself.
        """
        about = message.metadata
        if about.dst_node_id != self._node.node_id:
            return False
        metadata = Metadata(
            run_id=about.run_id,
            message_id="",
            src_node_id=about.dst_node_id,
            dst_node_id=about.src_node_id,
            reply_to_message_id=about.message_id,
            group_id=about.group_id,
            # The server's clock, not this machine's.
            created_at=about.created_at,
            ttl=about.ttl,
            message_type=about.message_type,
        )
        answer = make_message(metadata, _record(parcel))
        with no_object_id_recompute(), self._calling():
            answer.metadata.__dict__["_message_id"] = answer.object_id
            objects = get_all_nested_objects(answer)
            taken = self._client.PushMessages(
                PushMessagesRequest(
                    node=self._node,
                    messages_list=[message_to_proto(remove_content_from_message(answer))],
                    message_object_trees=[get_object_tree(answer)],
                )
            )
            for name in taken.objects_to_push:
                self._client.PushObject(
                    PushObjectRequest(
                        node=self._node,
                        run_id=about.run_id,
                        session_id=taken.session_id,
                        object_id=name,
                        object_content=objects[name].deflate(),
                    )
                )
        return True

    def close(self) -> None:
        """Say goodbye, where somebody is there to hear it; no sign of life may follow."""
        if self._is_heard:
            with contextlib.suppress(FleetError), self._calling():
                self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))
        self._client.close()
        self._pulse.close()

    @contextlib.contextmanager
    def _calling(self) -> Iterator[None]:
        try:
            yield
            self._is_heard = True
        except httpx.TransportError as error:
            self._is_heard = False
            raise UnreachableError(str(error) or type(error).__name__) from error
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status >= 500:
                raise UnreachableError(f"the server answers with HTTP status {status}") from error
            raise RefusedError(_reason(error.response), status) from error
        except ValueError as error:
            raise UnreachableError(f"the server's answer cannot be read: {error}") from error


class _Client(FleetHttpClient):
    """Flower's, that goes nowhere else, and reads no more than it must."""

    def __init__(
        self, address: str, interceptors: Sequence[Any], trusted: ssl.SSLContext, limit: int
    ) -> None:
        super().__init__(address, interceptors=[*interceptors, self], verify=trusted)
        self._client.follow_redirects = False
        self._limit = limit

    def intercept(self, context: Any, call_next: Any) -> httpx.Response:
        """The innermost: sends the request itself, and counts what comes."""
        request = context.request
        # A few bytes that unpack to many would be counted too late.
        request.headers["accept-encoding"] = "identity"
        response = self._client.send(request, stream=True)
        content = bytearray()
        try:
            for chunk in response.iter_raw():
                content += chunk
                if len(content) > self._limit:
                    raise FleetError(f"the server sends more than {self._limit:,} bytes at once")
        finally:
            response.close()
        headers = {"date": response.headers["date"]} if "date" in response.headers else {}
        return httpx.Response(
            response.status_code, headers=headers, content=bytes(content), request=request
        )


def _announced(found: PullMessagesResponse) -> tuple[Message, list[str]]:
    """A message without its content, and the ids of its parts, the whole last.

    Raises:
        FleetError: it is none.
    """
    try:
        message = message_from_proto(found.messages_list[0])
        tree = found.message_object_trees[0]
    except Exception as error:
        raise FleetError(f"the server sent what Flower cannot read ({error})") from error
    parts = [part.object_id for part in iterate_object_tree(tree)]
    if len(parts) > MAX_OBJECTS:
        raise FleetError(f"the server sent a message of {len(parts)} parts, at most {MAX_OBJECTS}")
    return message, parts


@dataclass(frozen=True)
class _Process:
    id: str

    def intercept(self, context: Any, call_next: Any) -> httpx.Response:
        context.request.headers[PROCESS_HEADER] = self.id
        response: httpx.Response = call_next(context)
        return response


def _reason(response: httpx.Response) -> str:
    """Why the server said no, as far as its status tells."""
    status = response.status_code
    if status == 409:
        return (
            "another process of this site is at work with the same invitation, or was until "
            f"less than {GONE_AFTER:.0f} seconds ago"
        )
    if status == 401:
        return f"the server does not know this invitation (any more){_clock(response)}"
    return f"the server refuses with HTTP status {status}"


def _clock(response: httpx.Response) -> str:
    """That this machine's clock is wrong, where it is: then the server cannot believe it."""
    try:
        there = parsedate_to_datetime(response.headers["date"])
    except (KeyError, ValueError):
        return ""
    ahead = (now() - there).total_seconds()
    if -TIMESTAMP_TOLERANCE < ahead < SYSTEM_TIME_TOLERANCE - 1:
        return ""
    return (
        f"; this machine's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} "
        "the server's, which alone is a reason: set both by NTP"
    )
