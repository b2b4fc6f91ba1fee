"""Pickles of plain values and numpy arrays, read without unpickling: nothing is ever called.

Unpickling runs whatever a file asks for, also with a filter on names. Here the instructions are
decoded by `pickletools` and carried out on a stack of plain values. "Call this function" and "make
this object" only write down what was asked for; the one construct that is understood afterwards is
a numpy array of bytes or texts, and it is built here from its shape and its bytes.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pfedmma_deploy.errors import DataError

__all__ = ["array_of", "read_pickle", "texts_of"]

_MARK: Final = object()
_PUSHED: Final = frozenset(
    [
        "BININT",
        "BININT1",
        "BININT2",
        "INT",
        "LONG",
        "LONG1",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BINUNICODE8",
    ]
)
_CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# What numpy's own pickles name, in all its versions.
_NAMES: Final = frozenset(
    {
        "numpy.core.multiarray _reconstruct",
        "numpy._core.multiarray _reconstruct",
        "numpy ndarray",
        "numpy dtype",
        "_codecs encode",
    }
)


_TEXTS: Final = re.compile(r"U[1-9]\d{0,3}")


@dataclass(slots=True)
class _Asked:
    """A call that a pickle asks for; it is never made."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


class _Machine:
    """Carries out the few instructions that plain values and arrays consist of."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._run: dict[str, Callable[[Any], None]] = {
            "EMPTY_DICT": lambda _: self.stack.append({}),
            "EMPTY_LIST": lambda _: self.stack.append([]),
            "EMPTY_TUPLE": lambda _: self.stack.append(()),
            "MARK": lambda _: self.stack.append(_MARK),
            "DICT": lambda _: self.stack.append(_pairs(self._marked())),
            "LIST": lambda _: self.stack.append(self._marked()),
            "TUPLE": lambda _: self.stack.append(tuple(self._marked())),
            "TUPLE1": lambda _: self._tuple(1),
            "TUPLE2": lambda _: self._tuple(2),
            "TUPLE3": lambda _: self._tuple(3),
            "APPEND": lambda _: self._extend([self.stack.pop()]),
            "APPENDS": lambda _: self._extend(self._marked()),
            "SETITEM": lambda _: self._update([self.stack.pop() for _ in "kv"][::-1]),
            "SETITEMS": lambda _: self._update(self._marked()),
            "GLOBAL": self._name,
            "STACK_GLOBAL": lambda _: self._name(" ".join(self._take(2))),
            "REDUCE": lambda _: self._ask(*self._take(2)),
            "BUILD": lambda _: self._build(self.stack.pop()),
            "MEMOIZE": lambda _: self._memo.update({len(self._memo): self.stack[-1]}),
        }

    def step(self, name: str, argument: Any) -> None:
        """One instruction. Raises `ValueError` for one that is not needed here."""
        if name in _PUSHED:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in {"BINPUT", "LONG_BINPUT", "PUT"}:
            self._memo[argument] = self.stack[-1]
        elif name in {"BINGET", "LONG_BINGET", "GET"}:
            self.stack.append(self._memo[argument])
        elif name in self._run:
            self._run[name](argument)
        elif name not in {"PROTO", "FRAME", "STOP"}:
            raise ValueError(f"the instruction {name}")

    def _take(self, count: int) -> list[Any]:
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def _marked(self) -> list[Any]:
        start = len(self.stack) - 1 - self.stack[::-1].index(_MARK)
        taken = self._take(len(self.stack) - start)
        return taken[1:]

    def _tuple(self, count: int) -> None:
        self.stack.append(tuple(self._take(count)))

    def _extend(self, items: list[Any]) -> None:
        _require(self.stack[-1], list).extend(items)

    def _update(self, items: list[Any]) -> None:
        _require(self.stack[-1], dict).update(_pairs(items))

    def _name(self, name: str) -> None:
        if name not in _NAMES:
            raise ValueError(f"the name '{name.replace(' ', '.')}'")
        self.stack.append(name)

    def _ask(self, name: Any, arguments: Any) -> None:
        match name, arguments:
            case "_codecs encode", (str(text), "latin1"):
                # How Python 3 writes bytes for Python 2: a text with one letter per byte.
                self.stack.append(text.encode("latin-1"))
            case str(), tuple():
                self.stack.append(_Asked(name, arguments))
            case _:
                raise ValueError("a call of something that has no name")

    def _build(self, state: Any) -> None:
        _require(self.stack[-1], _Asked).state = state


def read_pickle(file: Path) -> Any:
    """The plain value in a pickle: dictionaries, lists, texts, numbers; arrays by `array_of`.

    Raises:
        DataError: no such file, no pickle, or one that holds anything else.
    """
    machine = _Machine()
    try:
        content = file.read_bytes()
        for opcode, argument, _ in pickletools.genops(content):
            machine.step(opcode.name, argument)
        (value,) = machine.stack
    except (ValueError, TypeError, LookupError, OSError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(
            f"{file} is no pickle that can be read without running what is in it: {reason}. Get the"
            " file again from where the data set is published"
        ) from error
    return value


def array_of(value: Any) -> NDArray[np.uint8]:
    """The uint8 array that a value of `read_pickle` describes. Raises `ValueError`."""
    shape, kind, _, data = _parts(value)
    if kind not in {"u1", "|u1"}:
        raise ValueError(f"numbers of type {kind}, expected u1")
    return np.frombuffer(_bytes(data), np.uint8).reshape(shape)


def texts_of(value: Any) -> list[Any]:
    """Texts in nested lists, from lists, tuples and arrays of texts. Raises `ValueError`."""
    if isinstance(value, list | tuple):
        return [item if isinstance(item, str) else texts_of(item) for item in value]
    shape, kind, order, data = _parts(value)
    if kind.startswith("O") and isinstance(data, list) and len(shape) == 1:
        return texts_of(data)
    if _TEXTS.fullmatch(kind) is None:
        raise ValueError(f"an array of type {kind} where texts should be")
    texts = np.frombuffer(_bytes(data), f"{'>' if order == '>' else '<'}{kind}").reshape(shape)
    nested: list[Any] = texts.tolist()
    return nested


def _parts(value: Any) -> tuple[tuple[int, ...], str, Any, Any]:
    """Shape, kind, byte order and content of an array in C order."""
    match value:
        case _Asked(
            state=(_, tuple(shape), _Asked(arguments=(str(kind), *_), state=order), False, data)
        ):
            return shape, kind, order[1] if isinstance(order, tuple) and order[1:] else "<", data
    raise ValueError("no numpy array where one should be")


def _bytes(data: Any) -> bytes:
    if isinstance(data, str):  # Python 2 made no difference
        data = data.encode("latin-1")
    if not isinstance(data, bytes):
        raise ValueError("an array without its bytes")
    return data


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _require(value: Any, kind: type[Any]) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{type(value).__name__} where a {kind.__name__} should be")
    return value
