"""Class names: of folders, in prompts, the same in two spellings, as the literature writes them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from pfedmma_deploy.errors import DataError, nearest

CLASSES_FILE: Final = "classes.txt"
# Not "C-130" or "747-200", which are names of aircraft.
_IDS: Final = re.compile(
    r"""
      \d+                                                # 7
    | (?:n|wn)[ ]?\d{8}                                  # n01440764 of WordNet
    | (?:class|cls|label|category|cat|type|group|object|obj|item|species|folder|id|idx)[ #-]?\d+
    | (?=.*\d)[0-9a-f]{8}(?:[ -]?[0-9a-f]{4}){0,3}[0-9a-f -]*   # hashes and UUIDs
    | /?m[/ ]0[0-9a-z_]+                                 # /m/0k4j of Open Images
    """,
    re.VERBOSE,
)


def class_name(folder: str) -> str:
    """The name that a prompt gets for a class folder: underscores become spaces."""
    return " ".join(folder.replace("_", " ").split()) or folder


def class_key(name: str) -> str:
    """What two class names have in common when a reader would call them the same."""
    # NFKC: an accent may be a letter's own or a sign behind it, and both look the same.
    text = unicodedata.normalize("NFKC", name).replace("_", " ")
    return re.sub(r"\s+", " ", text).strip().casefold()


def is_id(name: str) -> bool:
    """Whether a class name is a number or a code, which no text encoder can make sense of."""
    return _IDS.fullmatch(class_key(name)) is not None


def build_prompts(class_names: Sequence[str], template: str) -> list[str]:
    """`template` with each name in place of `{}`; underscores of folder names become spaces."""
    return [template.replace("{}", name.replace("_", " ")) for name in class_names]


def label_folders(root: Path, folders: Iterable[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Gives every class folder a label, in the order of classes.txt, else of the sorted folders.

    classes.txt has one class per line, in class order: the name of its folder, or the folder, a
    tab or comma, and the name to use instead (`n02123045,tabby cat`). Empty lines and lines that
    begin with # do not count.

    Args:
        root: the data folder, where classes.txt may lie.
        folders: names of the class folders; the same name may come from several clients.

    Returns:
        The class names in order, and the label of each folder.

    Raises:
        DataError: classes.txt has a line without a folder, or none for a folder.
    """
    order = sorted(set(folders))
    names = {folder: class_name(folder) for folder in order}
    if (root / CLASSES_FILE).is_file():
        names = _read_classes_file(root / CLASSES_FILE, order)
    return tuple(names.values()), {folder: label for label, folder in enumerate(names)}


def _read_classes_file(file: Path, folders: Sequence[str]) -> dict[str, str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as UTF-8 text: {error}") from error
    names: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        folder, name = _parse_line(line.strip(), folders)
        if folder is None:
            raise DataError(
                f"{file}, line {number}: there is no class folder '{name}'{nearest(name, folders)};"
                " expected one line per folder: its name, or `folder,name`"
            )
        if folder in names:
            raise DataError(f"{file}, line {number}: class folder '{folder}' stands there twice")
        names[folder] = name
    missing = [folder for folder in folders if folder not in names]
    if missing:
        raise DataError(
            f"{file} has no line for the class folders {', '.join(missing)}; add them where they"
            " belong in the class order, or remove the folders"
        )
    return names


def _parse_line(line: str, folders: Sequence[str]) -> tuple[str | None, str]:
    """(folder, name); the folder is None where no folder fits, and the name then what was read."""
    # The whole line comes first: a folder may have a comma in its name.
    if line in folders:
        return line, class_name(line)
    same = [folder for folder in folders if class_name(folder) == line]
    if len(same) == 1:
        return same[0], line
    for separator in ("\t", ","):
        folder, _, name = (part.strip() for part in line.partition(separator))
        if folder in folders and name:
            return folder, name
    return None, line
