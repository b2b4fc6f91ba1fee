"""Pickles of plain values and numpy arrays, read without calling anything that they name.

Unpickling runs whatever a file asks for; numpy's own reconstructors, which a filter on names would
let through, trust what they are given, and would read and write memory out of bounds. So the names
that a pickle may mention stand for inert objects here: to call one or to give it a state only
writes down the arguments. What is understood afterwards is an array of bytes or texts, and it is
built here from its shape and its bytes. Any other name ends the reading.
"""

from __future__ import annotations

import pickle
import pickletools
import re
from io import BytesIO
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.errors import DataError

# What numpy's own pickles name, in all its versions.
_NAMES: Final = frozenset(
    {
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
        "numpy.ndarray",
        "numpy.dtype",
        "_codecs.encode",
    }
)
_INSTRUCTIONS: Final = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST
    APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS GET BINGET LONG_BINGET PUT BINPUT
    LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD
"""
_NAME_OF: Final = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
"""Instructions by their byte."""
_TEXTS: Final = re.compile(r"U[1-9]\d{0,3}")


class _Call:
    """A call that a pickle asks for, and the state that it asks to give to the result."""

    __slots__ = ("arguments", "state")

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Name:
    """What a name in a pickle stands for: calling it does nothing but note the arguments."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *arguments: Any) -> Any:
        match self.name, arguments:
            case "_codecs.encode", (str(text), "latin1"):
                # How Python 3 writes bytes for Python 2: a text with one letter per byte.
                return text.encode("latin-1")
        return _Call(arguments)

    def __setstate__(self, state: Any) -> NoReturn:
        raise ValueError(f"a state for the name '{self.name}'")


class _Instructions(dict[int, Any]):
    def __missing__(self, code: int) -> NoReturn:
        raise ValueError(f"the instruction {_NAME_OF.get(code, code)}")


# The Unpickler written in C keeps its memo in an array as long as the largest number that a file
# uses in it, so that a few bytes could ask for 64 GB; that written in Python keeps a dictionary.
class _Reader(pickle._Unpickler):
    # Only what the pickles of the data sets are made of. Left out are, among others, instructions
    # that make objects of a class, that look names up by number, and that reserve memory.
    dispatch = _Instructions(
        (code, pickle._Unpickler.dispatch[code])
        for code, name in _NAME_OF.items()
        if name in _INSTRUCTIONS.split()
    )

    def find_class(self, module: str, name: str) -> _Name:
        full = f"{module}.{name}"
        if full not in _NAMES:
            raise ValueError(f"the name '{full}'")
        return _Name(full)


def read_pickle(file: Path) -> Any:
    """The plain value in a pickle: dictionaries, lists, texts, numbers; arrays by `array_of`.

    Raises:
        DataError: no such file, no pickle, or one that holds anything else.
    """
    try:
        return _Reader(BytesIO(file.read_bytes()), encoding="latin1").load()
    # A damaged file may end in anything: its instructions are carried out on whatever is there.
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(
            f"{file} is no pickle that can be read without running what is in it: {reason}. Get the"
            " file again from where the data set is published"
        ) from error


def array_of(value: Any) -> NDArray[np.uint8]:
    """The uint8 array that a value of `read_pickle` describes. Raises `ValueError`."""
    shape, kind, _, data = _described(value)
    if kind not in {"u1", "|u1"}:
        raise ValueError(f"numbers of type {kind}, expected u1")
    return np.frombuffer(_bytes(data), np.uint8).reshape(shape)


def texts_of(value: Any) -> list[Any]:
    """Texts in nested lists, from lists, tuples and arrays of texts. Raises `ValueError`."""
    if isinstance(value, list | tuple):
        return [item if isinstance(item, str) else texts_of(item) for item in value]
    shape, kind, order, data = _described(value)
    if kind.startswith("O") and isinstance(data, list) and len(shape) == 1:
        return texts_of(data)
    if _TEXTS.fullmatch(kind) is None:
        raise ValueError(f"an array of type {kind} where texts should be")
    texts = np.frombuffer(_bytes(data), f"{'>' if order == '>' else '<'}{kind}").reshape(shape)
    nested: list[Any] = texts.tolist()
    return nested


def _described(value: Any) -> tuple[tuple[int, ...], str, Any, Any]:
    """Shape, kind, byte order and content of an array in C order."""
    if isinstance(value, _Call):
        match value.state:
            # The state of an array: version, shape, type, whether in Fortran's order, content.
            case (_, tuple(shape), _Call() as dtype, False, data):
                match dtype.arguments, dtype.state:
                    case (str(kind), *_), order:
                        # The state of a type: version, byte order, and more for other types.
                        is_long = isinstance(order, tuple) and len(order) > 1
                        return shape, kind, order[1] if is_long else "<", data
    raise ValueError("no numpy array where one should be")


def _bytes(data: Any) -> bytes:
    if isinstance(data, str):  # Python 2 made no difference
        data = data.encode("latin-1")
    if not isinstance(data, bytes):
        raise ValueError("an array without its bytes")
    return data
