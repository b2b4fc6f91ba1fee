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
        tensors = parse_tensors(parcel.tensors, Path("its tensors")) if parcel.tensors else {}
    except (ValueError, RecursionError) as error:
        raise FleetError(f"a header that is not JSON: {error}") from error
    except StoreError as error:
        raise FleetError(str(error)) from error
    kind = values.pop("kind", None) if isinstance(values, dict) else None
    if kind not in KINDS:
        raise FleetError(f"a message of kind {kind!r}, expected one of {', '.join(KINDS)}")
    return Note(kind, values, tensors)
