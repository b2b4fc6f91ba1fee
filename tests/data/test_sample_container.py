"""The container format of the samples: what it is, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path

import pytest

import pfedmma_deploy
from pfedmma_deploy.data.samples import SAMPLE_NAMES, SampleDataset
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Example

ASSETS = Path(pfedmma_deploy.__file__).parent / "assets" / "samples"
HEADER = "key,label,split,client,domain\n"


def container(members: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for key, content in members.items():
            archive.writestr(key, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"card.json": '{"format": 2}'}, "x has format 2; this version reads format 1"),
        ({"card.json": "{"}, "x is damaged"),
        ({"index.csv": "key,label\n"}, "has the columns key, label; expected key, label, split"),
        ({"index.csv": HEADER + "a.png,cat,train,,\n"}, r"line 2 of its index \(a.png,cat,train"),
        ({"index.csv": HEADER + "b.png,dog,train,,\n"}, "names no image, class or split"),
        ({"index.csv": HEADER + "b.png,cat,dev,,\n"}, "names no image, class or split"),
        ({"index.csv": HEADER + "b.png,cat,train\n"}, "names no image, class or split"),
    ],
)
def test_damaged_containers_are_refused(changed: dict[str, str], message: str) -> None:
    index = HEADER + "b.png,cat,train,site,photo\n"
    whole = {"card.json": '{"format": 1}', "classes.txt": "cat\n", "index.csv": index, "b.png": ""}
    assert SampleDataset("x", container(whole)).examples == (
        Example("b.png", 0, "train", "site", "photo"),
    )
    with pytest.raises(DataError, match=message):
        SampleDataset("x", container(whole | changed))


def test_a_file_that_is_no_zip_is_refused() -> None:
    with pytest.raises(DataError, match=r"The sample x is damaged \(File is not a zip file\)"):
        SampleDataset("x", b"not a zip")


def test_container_is_plain_and_without_timestamps() -> None:
    for name in SAMPLE_NAMES:
        with zipfile.ZipFile(ASSETS / f"{name}.zip") as archive:
            infos = archive.infolist()
            assert [i.filename for i in infos[:3]] == ["index.csv", "classes.txt", "card.json"]
            assert {i.compress_type for i in infos} == {zipfile.ZIP_STORED}
            assert {i.date_time for i in infos} == {(1980, 1, 1, 0, 0, 0)}
            header = next(csv.reader(io.StringIO(archive.read("index.csv").decode())))
            assert header == ["key", "label", "split", "client", "domain"]
            assert json.loads(archive.read("card.json"))["format"] == 1
