"""The samples that come with the package: real images, readable without a download."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from importlib.resources import files
from typing import Any, cast, get_args

from PIL import Image

from pfedmma_deploy.data.images import decode_image
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Dataset, Example, Split

SAMPLE_NAMES = ("cifar10-sample", "domains-sample")

FORMAT = 1
COLUMNS = ["key", "label", "split", "client", "domain"]


class SampleDataset(Dataset):
    """A sample as a `Dataset`: a fixed order, images decoded when they are asked for.

    The container is a ZIP with `index.csv` (columns `COLUMNS`; `key` is a path inside the ZIP,
    `label` a class name, `client` and `domain` may be empty), `classes.txt` (one name a line,
    in class order), `card.json` (sources, licences, attribution, counts) and the PNG files.
    The compressed images are held in memory, so that any number of threads and forked
    processes can read at once.
    """

    layout = "sample"

    def __init__(self, name: str, container: bytes) -> None:
        """Read the index of `container`, the bytes of the ZIP.

        Raises:
            DataError: the container is damaged or of another format version.
        """
        try:
            # All at once: a ZIP file is read at one place at a time, images by many threads.
            self._members = _read_members(container)
            self.card: dict[str, Any] = json.loads(self._members["card.json"])
            index = self._members["index.csv"].decode()
            self.class_names = tuple(self._members["classes.txt"].decode().splitlines())
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise DataError(
                f"The sample {name} is damaged ({error}). Install the package again."
            ) from error
        if self.card.get("format") != FORMAT:
            raise DataError(
                f"The sample {name} has format {self.card.get('format')}; this version reads "
                f"format {FORMAT}. Install the package again."
            )
        self.name = name
        self.examples = _read_index(name, index, self.class_names, self._members)

    def open_image(self, example: Example) -> Image.Image:
        """Decoded RGB pixels, 32 or 64 px. Raises `DataError` for an example of other data."""
        try:
            content = self._members[example.key]
        except KeyError:
            raise DataError(
                f"The sample {self.name} has no image {example.key}; use the examples of this "
                "data set."
            ) from None
        return decode_image(content)


def load_sample(name: str) -> SampleDataset:
    """The embedded sample `name`, one of `SAMPLE_NAMES`.

    Raises:
        DataError: unknown name, or a file that is missing or damaged.
    """
    if name not in SAMPLE_NAMES:
        raise DataError(
            f"There is no sample {name!r}; the samples are {' and '.join(SAMPLE_NAMES)}."
        )
    file = files("pfedmma_deploy").joinpath("assets", "samples", f"{name}.zip")
    try:
        container = file.read_bytes()
    except OSError as error:
        raise DataError(
            f"The sample {name} is not installed ({error.strerror}: {file}). Install the "
            "package again."
        ) from error
    return SampleDataset(name, container)


def _read_members(container: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(container)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def _read_index(
    name: str, index: str, class_names: tuple[str, ...], members: dict[str, bytes]
) -> tuple[Example, ...]:
    """Rows of the index as examples, in file order."""
    rows = csv.reader(io.StringIO(index))
    if (header := next(rows, [])) != COLUMNS:
        raise DataError(
            f"The index of the sample {name} has the columns {', '.join(header)}; expected "
            f"{', '.join(COLUMNS)}. Install the package again."
        )
    labels = {class_name: label for label, class_name in enumerate(class_names)}
    examples = []
    for row in rows:
        if len(row) != len(COLUMNS) or not _is_valid(row, labels, members):
            raise DataError(
                f"The sample {name} is damaged: line {rows.line_num} of its index "
                f"({','.join(row)}) names no image, class or split. Install the package again."
            )
        key, label, split, client, domain = row
        examples.append(
            Example(key, labels[label], cast(Split, split), client or None, domain or None)
        )
    return tuple(examples)


def _is_valid(row: list[str], labels: dict[str, int], members: dict[str, bytes]) -> bool:
    key, label, split = row[:3]
    return key in members and label in labels and split in get_args(Split)
