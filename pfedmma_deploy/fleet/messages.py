"""What travels between the server and a site: one header of plain values, and tensors.

    server -> site   hello                      who are you
                     train  + shared tensors    your part of a round
                     finish + shared tensors    the last round is done, keep your result
    site -> server   the same kind, with what it found; or failed, with the reason

A header is JSON, tensors are a safetensors file: nothing that either side receives is executed.
Local tensors, optimizers, images and file names have no place in either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from pfedmma_deploy.errors import FleetError, StoreError
from pfedmma_deploy.store.files import parse_tensors, tensor_bytes

Kind = Literal["hello", "train", "finish", "failed"]
KINDS = ("hello", "train", "finish", "failed")
MAX_HEADER = 64_000
"""Characters of a header at most: class names are the longest thing in it."""
MAX_TENSOR_HEADER = 1_000_000
"""Bytes of a safetensors file's own header at most: names and shapes of the tensors."""
MAX_DEPTH = 8
"""Tables within tables of a header at most."""
MAX_REASON = 300
"""Characters of what one side says of the other's message, where it is shown or stored."""


@dataclass(frozen=True)
class Parcel:
    """One message as it travels."""

    header: str
    """JSON object with `kind`."""
    tensors: bytes = b""
    """A safetensors file, or nothing."""


@dataclass(frozen=True)
class Note:
    """One message as both sides read it."""

    kind: Kind
    values: Mapping[str, Any] = field(default_factory=dict)
    """Plain values beside `kind`."""
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def pack(self) -> Parcel:
        """As it travels."""
        header = json.dumps({"kind": self.kind, **self.values}, ensure_ascii=False)
        return Parcel(header, tensor_bytes(self.tensors) if self.tensors else b"")


def unpack(parcel: Parcel) -> Note:
    """Read a parcel; its values are not checked yet.

    Raises:
        FleetError: the header is no JSON object of a known kind or is too long, or the tensors are
            no safetensors file of finite numbers.
    """
    if len(parcel.header) > MAX_HEADER:
        raise FleetError(f"a header of {len(parcel.header):,} characters, at most {MAX_HEADER:,}")
    try:
        values = json.loads(parcel.header)
        _require_plain(values, MAX_DEPTH)
    except (ValueError, RecursionError) as error:
        raise FleetError(f"a header that is not JSON: {error}") from error
    kind = values.pop("kind", None) if isinstance(values, dict) else None
    if kind not in KINDS:
        raise FleetError(f"a message of kind {kind!r}, expected one of {', '.join(KINDS)}")
    return Note(kind, values, _unpack_tensors(parcel.tensors))


def one_line(text: str) -> str:
    """What another machine wrote, for a table or a terminal: printable, and not longer than one."""
    line = "".join(each if each.isprintable() else " " for each in text[: MAX_REASON + 1])
    return line if len(line) <= MAX_REASON else f"{line[: MAX_REASON - 3]}..."


def is_name(value: object) -> bool:
    """Whether another machine's value can be the name of a class, here and in a terminal."""
    return isinstance(value, str) and value.isprintable() and bool(value.strip())


def _unpack_tensors(data: bytes) -> dict[str, Tensor]:
    if not data:
        return {}
    size = int.from_bytes(data[:8], "little")
    if size > MAX_TENSOR_HEADER:
        raise FleetError(f"tensors with a header of {size:,} bytes, at most {MAX_TENSOR_HEADER:,}")
    try:
        return parse_tensors(data, Path("its tensors"))
    except StoreError as error:
        raise FleetError(str(error)) from error
    except (RuntimeError, TypeError) as error:
        # Sizes that only torch finds impossible.
        raise FleetError(f"tensors that cannot be read ({error})") from error


def _require_plain(value: object, depth: int) -> None:
    """Raises `ValueError` for text that is no Unicode, and for tables within tables without end.

    Either would be accepted here, and end the process that writes it to a file later.
    """
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict | list):
        if not depth:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        for part in parts:
            _require_plain(part, depth - 1)
