"""CIFAR's pickles are read, and whatever else a pickle can hold is refused without being run."""

from __future__ import annotations

import os
import pickle
import pickletools
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfedmma_deploy.data.datasets import load_dataset
from pfedmma_deploy.data.readers import pickles
from pfedmma_deploy.data.readers.pickles import array_of, read_pickle, texts_of
from pfedmma_deploy.errors import DataError
from tests.layouts import cifar10_python

PROTOCOL = b"\x80\x04"


def short(text: bytes) -> bytes:
    """SHORT_BINSTRING, as Python 2 writes a text."""
    return b"U" + struct.pack("B", len(text)) + text


def python2_batch(rows: np.ndarray[Any, np.dtype[np.uint8]], labels: list[int]) -> bytes:
    """A batch as the authors' Python 2 wrote it (protocol 2), instruction by instruction."""
    numbers = b"".join(b"K" + struct.pack("B", label) for label in labels)
    data = rows.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85q\tU\x01bq\n"
        b"\x87q\x0bRq\x0c(K\x01M"
        + struct.pack("<H", len(rows))
        + b"M\x00\x0c\x86q\rcnumpy\ndtype\n"
        b"q\x0eU\x02u1q\x0fK\x00K\x01\x87q\x10Rq\x11(K\x03U\x01|q\x12NNNJ\xff\xff\xff\xffJ\xff\xff"
        b"\xff\xffK\x00tq\x13b\x89T" + struct.pack("<i", len(data)) + data + b"tq\x14b"
    )
    return (
        b"\x80\x02}q\x01(" + short(b"batch_label") + b"q\x02" + short(b"training batch 1 of 5")
        + b"q\x03" + short(b"labels") + b"q\x04]q\x05(" + numbers + b"e" + short(b"data") + b"q\x06"
        + array + short(b"filenames") + b"q\x15]q\x16(" + short(b"camion_s_000148.png") + b"eu."
    )  # fmt: skip


def test_a_batch_as_python_2_wrote_it(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (3, 3072)).astype(np.uint8)
    content = python2_batch(rows, [6, 9, 4])
    (tmp_path / "batch").write_bytes(content)
    # The stream above is what Python itself takes for a pickled batch.
    expected = pickle.loads(content, encoding="latin1")  # our own bytes
    found = read_pickle(tmp_path / "batch")
    assert found["labels"] == expected["labels"] == [6, 9, 4]
    assert found["batch_label"] == "training batch 1 of 5"
    np.testing.assert_array_equal(array_of(found["data"]), rows)
    np.testing.assert_array_equal(expected["data"], rows)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_arrays_of_every_protocol(protocol: int, tmp_path: Path) -> None:
    rows = np.arange(24, dtype=np.uint8).reshape(4, 6)
    file = tmp_path / "batch"
    try:
        file.write_bytes(pickle.dumps({"data": rows, "labels": [1, 2]}, protocol=protocol))
        found = read_pickle(file)
        np.testing.assert_array_equal(array_of(found["data"]), rows)
    except DataError as error:
        # Protocol 5 keeps arrays in a form of numpy's own that CIFAR has never had.
        assert protocol == 5 and "the name 'numpy" in str(error)


class Harm:
    """Asks for a call when it is unpickled."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.function, self.arguments


def test_nothing_in_a_pickle_is_run(tmp_path: Path) -> None:
    tree = cifar10_python(tmp_path)
    witness = tmp_path / "witness"
    batch = tree.path / "data_batch_3"
    for harm in (Harm(Path.touch, witness), Harm(eval, f"open({str(witness)!r}, 'w')")):
        for protocol in (2, 4):
            batch.write_bytes(pickle.dumps({"labels": [0], "data": harm}, protocol=protocol))
            with pytest.raises(DataError, match="read without running what is in it: the name '"):
                load_dataset(tree.path)
    assert not witness.exists()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_batch_is_an_error_of_the_data(data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(python2_batch(np.zeros((2, 3072), np.uint8), [1, 2]))
    # Anywhere but in the pixels, where every change is still an image.
    places = [*range(250), *range(len(content) - 40, len(content))]
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.sampled_from(places))] = data.draw(st.integers(0, 255))
    file = tmp_path / "batch"
    file.write_bytes(bytes(content[: data.draw(st.integers(1, len(content)))]))
    try:
        found = read_pickle(file)
        array_of(found["data"])
    except (DataError, ValueError, LookupError, TypeError):
        pass


def text(value: str) -> bytes:
    """SHORT_BINUNICODE."""
    return b"\x8c" + struct.pack("B", len(value)) + value.encode()


def name(module: str, attribute: str) -> bytes:
    """STACK_GLOBAL."""
    return text(module) + text(attribute) + b"\x93"


def read(content: bytes, folder: Path) -> Any:
    (folder / "file").write_bytes(content)
    return read_pickle(folder / "file")


def refusal(content: bytes, folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(content, folder)
    return str(caught.value)


@pytest.mark.parametrize(
    ("module", "attribute"),
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("__builtin__", "apply"),
        ("os", "system"),
        ("posix", "system"),
        ("codecs", "lookup"),
        ("_codecs", "decode"),
        ("numpy", "load"),
        ("numpy", "dtype.__class__"),
        ("numpy", "ndarray.__init__.__globals__"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.numeric", "_frombuffer"),
        ("copyreg", "_reconstructor"),
        ("pfedmma_deploy.data.readers.pickles", "_Reader"),
    ],
)
def test_every_other_name_is_refused(module: str, attribute: str, tmp_path: Path) -> None:
    expected = f"the name '{module}.{attribute}'"
    assert expected in refusal(PROTOCOL + name(module, attribute) + b".", tmp_path)
    assert expected in refusal(f"c{module}\n{attribute}\n.".encode(), tmp_path)


def test_the_names_that_are_known_stand_for_nothing(tmp_path: Path) -> None:
    for known in sorted(pickles._NAMES):
        module, _, attribute = known.rpartition(".")
        found = read(PROTOCOL + name(module, attribute) + b".", tmp_path)
        assert type(found) is pickles._Name and not isinstance(found, type)
        assert {each for each in dir(found) if not each.startswith("__")} == {"name"}


def test_calls_are_written_down_and_not_made(tmp_path: Path) -> None:
    # numpy itself would reserve a terabyte of objects, or read a type with fields out of bounds.
    array = name("numpy._core.multiarray", "_reconstruct")
    content = array + b"(" + name("numpy", "ndarray") + b"J" + struct.pack("<i", 2**31 - 1)
    tracemalloc.start()
    found = read(PROTOCOL + content + text("O") + b"tR.", tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert type(found) is pickles._Call and found.arguments[1:] == (2**31 - 1, "O")
    assert peak < 2**20
    fields = b"}" + text("a") + b"(" + name("numpy", "dtype") + text("O") + b"\x85R"
    fields += b"J" + struct.pack("<i", 10**9) + b"ts"
    dtype = name("numpy", "dtype") + text("V8") + b"\x85R(K\x03" + text("|") + b"N"
    dtype += text("a") + b"\x85" + fields + b"K\x08K\x01K\x00tb"
    found = read(PROTOCOL + dtype + b".", tmp_path)
    assert type(found) is pickles._Call
    with pytest.raises(ValueError, match="no numpy array where one should be"):
        array_of(found)
    with pytest.raises(ValueError, match="no numpy array where one should be"):
        texts_of(found)


@pytest.mark.parametrize(
    "target",
    [name("numpy", "dtype"), name("_codecs", "encode"), b"]", b"}", b")", text("x"), b"N"],
)
@pytest.mark.parametrize(
    "state",
    [
        b"}" + text("__call__") + text("x") + b"s",
        b"N}" + text("__class__") + text("x") + b"s\x86",
        b"}" + text("name") + text("x") + b"s}" + text("name") + text("x") + b"s\x86",
        text("x"),
    ],
)
def test_nothing_takes_a_state_but_what_was_called(
    target: bytes, state: bytes, tmp_path: Path
) -> None:
    before = dict(vars(pickles._Name)), dict(vars(pickles._Call))
    assert "read without running what is in it" in refusal(
        PROTOCOL + target + state + b"b.", tmp_path
    )
    assert (dict(vars(pickles._Name)), dict(vars(pickles._Call))) == before


def test_instructions_that_make_objects_or_reserve_memory_are_refused(tmp_path: Path) -> None:
    left_out = {opcode.name: opcode.code for opcode in pickletools.opcodes}
    for known in pickles._INSTRUCTIONS.split():
        del left_out[known]
    assert {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "PERSID", "BINPERSID", "BYTEARRAY8",
            "NEXT_BUFFER", "REDUCE"} - left_out.keys() == {"REDUCE"}  # fmt: skip
    for instruction, code in left_out.items():
        content = PROTOCOL + b"((N" + code.encode("latin-1") + b"\xff" * 40
        assert f"the instruction {instruction}" in refusal(content, tmp_path)
    assert "the instruction 255" in refusal(b"\xff", tmp_path)


def test_a_few_bytes_reserve_a_few_bytes(tmp_path: Path) -> None:
    number = struct.pack("<I", 2**32 - 1)
    tracemalloc.start()
    # The C Unpickler makes an array of eight times four billion bytes for this memo.
    assert read(PROTOCOL + b"]r" + number + b"j" + number + b"\x86.", tmp_path) == ([], [])
    for code in (b"T", b"X", b"B"):
        refusal(PROTOCOL + code + struct.pack("<i", 2**31 - 1) + b"x.", tmp_path)
    for code in (b"\x8d", b"\x8e", b"\x95"):
        refusal(PROTOCOL + code + struct.pack("<Q", 2**40) + b"x.", tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


PLAIN = (dict, list, tuple, str, bytes, int, bool, type(None), pickles._Call, pickles._Name)


def is_inert(value: Any, seen: set[int]) -> bool:
    if id(value) in seen:
        return True
    seen.add(id(value))
    inside: list[Any] = []
    if isinstance(value, dict):
        inside = [*value, *value.values()]
    elif isinstance(value, list | tuple):
        inside = list(value)
    elif isinstance(value, pickles._Call):
        inside = [*value.arguments, value.state]
    return type(value) in PLAIN and all(is_inert(each, seen) for each in inside)


PIECES = [
    b"(", b"}", b"]", b")", b"N", b"K\x01", b"t", b"\x85", b"\x86", b"s", b"u", b"a", b"e", b"l",
    b"d", b"R", b"b", b"\x94", b"q\x01", b"h\x01", b"0", b"2", b"\x81", b"o", b"Q", b"\x82\x01",
    text("x"), text("latin1"), name("numpy", "dtype"), name("_codecs", "encode"),
    name("numpy._core.multiarray", "_reconstruct"), name("os", "system"),
]  # fmt: skip


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(program=st.lists(st.sampled_from(PIECES), max_size=30))
def test_no_program_makes_anything_but_plain_values(program: list[bytes], tmp_path: Path) -> None:
    environment = dict(os.environ)
    try:
        found = read(PROTOCOL + b"".join(program) + b".", tmp_path)
    except DataError:
        pass
    else:
        assert is_inert(found, set())
    assert dict(os.environ) == environment
