"""The samples that come with the package: real images, readable without a download."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from PIL import Image

from pfedmma_deploy.data.images import decode_image
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Dataset, Example

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
        """Read the index of `container`, the bytes of the ZIP; raises `DataError` if damaged."""
        try:
            # All at once: a ZIP file is read at one place at a time, images by many threads.
            with zipfile.ZipFile(io.BytesIO(container)) as archive:
                self._members = {name: archive.read(name) for name in archive.namelist()}
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
        self.examples = tuple(self._read_index(index))

    def _read_index(self, index: str) -> Iterator[Example]:
        rows = csv.reader(io.StringIO(index))
        if (header := next(rows, [])) != COLUMNS:
            raise DataError(
                f"The index of the sample {self.name} has the columns {', '.join(header)}; expected"
                f" {', '.join(COLUMNS)}. Install the package again."
            )
        labels = {name: label for label, name in enumerate(self.class_names)}
        for row in rows:
            match row:
                case [key, name, "train" | "val" | "test" as split, client, domain] if (
                    key in self._members and name in labels
                ):
                    yield Example(key, labels[name], split, client or None, domain or None)
                case _:
                    raise DataError(
                        f"The sample {self.name} is damaged: line {rows.line_num} of its index "
                        f"({','.join(row)}) names no image, class or split. Install the package "
                        "again."
                    )

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
