"""`Link`: the server's end of Flower 1.41.

Flower's SuperLink would listen with its control and runtime interfaces on the same port as with the
one for sites, and neither asks who calls: whoever reaches it could run code on the sites. Here the
server's process has Flower's link state in memory and answers the sites' paths only (`PATHS`), over
TLS, to registered keys. Nothing is ever started by a message: a site runs what is installed there.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import itertools
import secrets
import threading
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request, Response
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
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree
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
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.responses import JSONResponse

from pfedmma_deploy.errors import FleetError
from pfedmma_deploy.fleet.flower import (
    ACTIVATE,
    DEACTIVATE,
    GONE_AFTER,
    MAX_OBJECTS,
    PROCESS_HEADER,
    PULL,
    PUSHES,
    SMALL_BODY,
    parcel_record,
    read_parcel,
)
from pfedmma_deploy.fleet.gate import Contact, Gate, listening
from pfedmma_deploy.fleet.messages import Parcel

# Flower's clocks do not decide here: a message lives until the server takes it back.
_FOR_EVER: Final = 3e7


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
        message = make_message(metadata, parcel_record(parcel))
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
        if contents is None:
            return None
        return read_parcel(inflate_object_from_contents(reply, contents))

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
        """Messages that the site fetched and has nothing to show for: see `flower`."""
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
    def listening(
        self, host: str, port: int, certificate: Path, key: Path
    ) -> contextlib.AbstractContextManager[int]:
        """Answer sites while the block runs: see `gate.listening`."""
        return listening(Gate(self._app(), self.admit), host, port, certificate, key)

    def _app(self) -> FastAPI:
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
        return app

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
