"""Which superclass each class belongs to, from a table in a file."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from pfedmma_deploy.data.checks import class_key
from pfedmma_deploy.errors import DataError

__all__ = ["read_superclasses"]

_FORM = 'expected lines like\n  "large carnivores" = ["bear", "leopard", "lion"]'


def read_superclasses(class_names: Sequence[str], file: Path | None = None) -> tuple[int, ...]:
    """The superclass of each label, as a number from 0 in the order of the table.

    Args:
        class_names: in class order; upper and lower case, spaces and underscores are alike.
        file: TOML, one line per superclass with its classes; None is CIFAR-100's table.

    Raises:
        DataError: the file cannot be read, or a class stands in none or two of the superclasses.
    """
    where = "the superclasses of CIFAR-100" if file is None else str(file)
    table = _read(file)
    found: dict[str, int] = {}
    for number, (name, members) in enumerate(table.items()):
        for member in members:
            if class_key(member) in found:
                raise DataError(f"{where}: class '{member}' of '{name}' stands there twice")
            found[class_key(member)] = number
    missing = [name for name in class_names if class_key(name) not in found]
    if missing:
        shown = ", ".join(f"'{name}'" for name in missing[:5])
        advice = (
            "name a table of your own with --superclasses FILE.toml"
            if file is None
            else "add them to it"
        )
        raise DataError(
            f"partition 'pachinko' needs the superclass of every class, but {where} lack"
            f"{'s' if file else ''} {len(missing)} of {len(class_names)}: {shown}; {advice}"
        )
    return tuple(found[class_key(name)] for name in class_names)


def _read(file: Path | None) -> dict[str, list[str]]:
    asset = files("pfedmma_deploy").joinpath("assets", "superclasses", "cifar100.toml")
    try:
        text = (file or asset).read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except OSError as error:
        raise DataError(f"superclasses {file}: {error.strerror}; {_FORM}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"superclasses {file}: not TOML ({error}); {_FORM}") from error
    for name, members in table.items():
        if not isinstance(members, list) or not all(isinstance(m, str) for m in members):
            raise DataError(f"superclasses {file}: '{name}' is no list of class names; {_FORM}")
    return table
