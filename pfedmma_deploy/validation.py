"""Options and hyper-parameters in range, or one sentence that says what was expected.

A frozen dataclass states what each of its fields may be in the field's annotation, as pydantic
reads it (a plain type, `Literal`, `Annotated[..., Field(ge=1)]`), and calls `check` when it is
made. This module turns pydantic's findings into the sentences of this package; nothing else does.

pydantic takes a third of the time in which `pfedmma --help` and `predict` have to answer. Modules
on their way therefore import this one where they need it, and may name `Annotated` and `Field` in
annotations that are kept as text, without importing pydantic: they are looked up here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError, create_model
from pydantic.fields import FieldInfo

from pfedmma_deploy.errors import UsageError, nearest

Count = Annotated[int, Field(ge=1, description="a whole number of 1 or more")]
Name = Annotated[str, Field(pattern=r"\S", description="a name")]

Made = TypeVar("Made")

_RULES: Final = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_WORDS: Final = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_IN_A_LINE: Final = 5
"""More choices than this are listed with commas."""


def check(instance: Any) -> None:
    """Checks every field of a dataclass when it is made, from `__post_init__`.

    Whole numbers pass for floats, and become floats; nothing else is converted.

    Raises:
        UsageError: the first field that is of another type or out of range. It goes by the `title`
            of its annotation where there is one, what is expected by the `description`.
    """
    values = {field.name: getattr(instance, field.name) for field in fields(instance)}
    for name, value in _validated(type(instance), values, "").items():
        if value is not values[name]:
            object.__setattr__(instance, name, value)


def construct(cls: type[Made], values: Mapping[str, Any], subject: str) -> Made:
    """A dataclass of hyper-parameters from names and values that somebody typed.

    Args:
        cls: every field has a default.
        values: some of the fields by name.
        subject: whose hyper-parameters they are, which begins each message.

    Raises:
        UsageError: an unknown name, a value of another type, or one out of range.
    """
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]  # a dataclass
    for name in values:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise UsageError(
                f"{subject} has no hyper-parameter {name!r}{nearest(name, known)} "
                f"(it has: {listed})."
            )
    _validated(cls, values, f"{subject}: ")
    return cls(**values)


def _validated(cls: type[Any], values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """`values` as the types of the fields of `cls`; fields that are left out are not looked at."""
    hints, model = _model(cls)  # type: ignore[arg-type]  # classes are hashable
    try:
        found = model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        kind = str(first["type"])
        sentence = _sentence(name, values[name], hints[name], kind)
        # Out of range says enough by itself.
        raise UsageError((prefix if kind.endswith("_type") else "") + sentence) from None
    return {name: getattr(found, name) for name in values}


@cache
def _model(cls: Any) -> tuple[dict[str, Any], type[BaseModel]]:
    """What each field may be, and a model of pydantic that knows."""
    names = {"Annotated": Annotated, "Field": Field, "Count": Count, "Name": Name}
    hints = get_type_hints(cls, localns=names, include_extras=True)
    shapes: dict[str, Any] = {}
    for field in fields(cls):
        hint = hints[field.name]
        # Another dataclass has checked itself.
        kind = InstanceOf[hint] if is_dataclass(hint) else hint  # type: ignore[misc,valid-type]
        shapes[field.name] = (kind, None)
    return hints, create_model(cls.__name__, __config__=_RULES, **shapes)


def _sentence(name: str, value: Any, hint: Any, error: str) -> str:
    """What was expected and what was found; `error` is pydantic's name for the mistake."""
    kind, notes = _unwrapped(hint)
    shown = next((note.title for note in notes if note.title), name)
    if kind is float and type(value) is int:
        value = float(value)
    expected = _expected(kind, notes, error)
    close = nearest(str(value), get_args(kind)) if get_origin(kind) is Literal else ""
    return f"{shown} must be {expected}, not {value!r}{close or '.'}"


def _unwrapped(hint: Any) -> tuple[Any, list[FieldInfo]]:
    """The type behind `Annotated` and `| None`, and what is noted of it."""
    notes: list[FieldInfo] = []
    while True:
        if get_origin(hint) is Annotated:
            notes += [note for note in hint.__metadata__ if isinstance(note, FieldInfo)]
            hint = get_args(hint)[0]
        elif get_origin(hint) in (Union, UnionType):
            hint = next(each for each in get_args(hint) if each is not NoneType)
        else:
            return hint, notes


def _expected(kind: Any, notes: Sequence[FieldInfo], error: str) -> str:
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return (" or " if len(choices) <= _IN_A_LINE else ", ").join(choices)
    word = _WORDS.get(kind, "")
    if word and error.endswith("_type"):
        return word
    described = next((note.description for note in notes if note.description), "")
    return described or _range(notes) or word or f"a {getattr(kind, '__name__', kind)}"


_RANGES: Final = {
    ("gt", "le"): "above {gt} and at most {le}",
    ("ge", "le"): "from {ge} to {le}",
    ("ge", "lt"): "from {ge} to below {lt}",
    ("gt", "lt"): "between {gt} and {lt}",
    ("ge",): "{ge} or more",
    ("gt",): "above {gt}",
    ("le",): "at most {le}",
    ("lt",): "below {lt}",
}


def _range(notes: Sequence[FieldInfo]) -> str:
    """The bounds in words, such as "above 0 and at most 1"; empty without bounds."""
    bounds: dict[str, Any] = {}
    for each in (each for note in notes for each in note.metadata):
        for name in ("ge", "gt", "le", "lt"):
            if hasattr(each, name):
                bounds[name] = getattr(each, name)
    return _RANGES.get(tuple(sorted(bounds)), "").format(**bounds)
