"""The order and the names of the classes: data, read once, never the order of a set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pfedmma_deploy.data.folders import CLASSES_FILE
from pfedmma_deploy.errors import DataError, nearest

__all__ = ["class_name", "label_folders"]


def class_name(folder: str) -> str:
    """The name that a prompt gets for a class folder: underscores become spaces."""
    return " ".join(folder.replace("_", " ").split()) or folder


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
