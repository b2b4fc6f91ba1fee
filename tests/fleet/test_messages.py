"""What a message is, and what is none."""

from __future__ import annotations

import json

import pytest
import torch

from pfedmma_deploy.errors import FleetError
from pfedmma_deploy.fleet.messages import Note, Parcel, is_name, one_line, unpack


def test_a_note_travels_and_comes_back() -> None:
    note = Note("train", {"round": 3, "names": ["naïve café"]}, {"w": torch.tensor([1.5, -2.0])})
    parcel = note.pack()
    assert json.loads(parcel.header) == {"kind": "train", "round": 3, "names": ["naïve café"]}
    # 8 bytes of length, then the safetensors header, then 1.5 and -2 as float32.
    assert parcel.tensors[-8:] == bytes.fromhex("0000c03f000000c0")
    back = unpack(parcel)
    assert (back.kind, back.values) == (note.kind, note.values)
    assert back.tensors["w"].tolist() == [1.5, -2.0]


def test_a_note_without_tensors_has_no_bytes_for_them() -> None:
    assert Note("hello").pack() == Parcel('{"kind": "hello"}', b"")
    assert unpack(Parcel('{"kind": "hello"}')).tensors == {}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("", "a header that is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("[" * 8 + "]" * 8, "a message of kind None, expected one of hello, train, finish, failed"),
        ("[" * 9 + "]" * 9, "a header that is not JSON: nested deeper than 8 levels"),
        ("7", "a message of kind None, expected one of hello, train, finish, failed"),
        ('{"kind": ["train"]}', "a message of kind ['train'], expected one of hello, train"),
        ('{"kind": "__import__"}', "a message of kind '__import__', expected one of hello, train"),
        ('{"kind": "hello", "x": "\\udc80"}', "a header that is not JSON: 'utf-8' codec can't"),
        ('{"kind": "hello", "\\udc80": 1}', "a header that is not JSON: 'utf-8' codec can't"),
        ('{"kind": "hello", "x": ' + "9" * 5000 + "}", "a header that is not JSON: Exceeds the"),
    ],
)
def test_no_message(header: str, message: str) -> None:
    with pytest.raises(FleetError) as raised:
        unpack(Parcel(header))
    assert str(raised.value).startswith(message)


def test_a_header_that_is_too_long() -> None:
    longest = '{"kind": "hello", "x": "' + "é" * (64_000 - 26) + '"}'
    assert len(longest) == 64_000
    assert unpack(Parcel(longest)).kind == "hello"
    with pytest.raises(FleetError, match=r"^a header of 64,001 characters, at most 64,000$"):
        unpack(Parcel(longest + " "))


def test_tensors_whose_own_header_is_too_long() -> None:
    """Its first eight bytes are its length: 1,000,001 here, whatever follows."""
    data = (1_000_001).to_bytes(8, "little") + b"{}"
    with pytest.raises(FleetError, match=r"a header of 1,000,001 bytes, at most 1,000,000$"):
        unpack(Parcel('{"kind": "hello"}', data))


def test_what_can_be_a_class() -> None:
    assert is_name("naïve café") and is_name("../x")
    for value in ("", " ", "a\nb", "\x1b[2J", 3, None, ["cat"]):
        assert not is_name(value)


def test_a_line_of_what_another_machine_wrote() -> None:
    """No colours, no second line, no more than 300 characters."""
    assert one_line("disk full") == "disk full"
    assert one_line("a\x1b[31mred\r\nb\u202e") == "a [31mred  b "
    assert one_line("x" * 300) == "x" * 300
    assert one_line("x" * 301) == "x" * 297 + "..."
