"""`Line`: a site's end of Flower 1.41, which fetches parcels and answers them."""

from __future__ import annotations

import contextlib
import secrets
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx
from flwr.app import Message
from flwr.app.message import make_message, remove_content_from_message
from flwr.app.metadata import Metadata
from flwr.common.constant import (
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_TOLERANCE,
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
from flwr.proto.message_pb2 import PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from pfedmma_deploy.errors import FleetError
from pfedmma_deploy.fleet.flower import (
    GONE_AFTER,
    MAX_OBJECTS,
    PROCESS_HEADER,
    parcel_record,
    read_parcel,
)
from pfedmma_deploy.fleet.keys import PrivateKey, public_pem
from pfedmma_deploy.fleet.messages import Parcel

# Flower's clocks do not decide who is gone.
_INTERVAL: Final = 1800.0


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
            return message, read_parcel(inflate_object_from_contents(parts[-1], contents))
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
        answer = make_message(metadata, parcel_record(parcel))
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
