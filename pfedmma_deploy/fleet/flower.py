"""What both ends of a Flower 1.41 connection agree on: paths, limits, and parcels as messages.

All that is internal to Flower is here, in `link` (the server's end) and in `line` (a site's end).

A ticket is the id of Flower's message, and an answer is the message that replies to it. A site asks
for work only when it has none, so a message that was fetched and not answered when its site asks
again was lost with a process or a connection, and is handed out once more.
"""

from __future__ import annotations

import logging
from typing import Final

from flwr.app import ConfigRecord, Message, RecordDict

from pfedmma_deploy.errors import FleetError
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
_RECORD: Final = "parcel"

logging.getLogger("flwr").setLevel(logging.CRITICAL)


def largest(payload: int) -> int:
    """Bytes of the largest message with this many bytes of tensors, and all around them."""
    return 2 * payload + 4 * MAX_HEADER + SMALL_BODY


def parcel_record(parcel: Parcel) -> RecordDict:
    """A parcel as the content of a message."""
    return RecordDict({_RECORD: ConfigRecord({"header": parcel.header, "tensors": parcel.tensors})})


def read_parcel(message: object) -> Parcel:
    """The parcel that a message carries.

    Raises:
        FleetError: it carries none.
    """
    if not isinstance(message, Message) or not message.has_content():
        raise FleetError("a message without content")
    record = message.content.get(_RECORD)
    if not isinstance(record, ConfigRecord):
        raise FleetError("a message of other content than a parcel")
    header, tensors = record.get("header"), record.get("tensors")
    if not isinstance(header, str) or not isinstance(tensors, bytes):
        raise FleetError("a parcel without header and tensors")
    return Parcel(header, tensors)
