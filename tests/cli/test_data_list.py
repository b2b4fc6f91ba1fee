"""`pfedmma data list`, `info` and `fetch`, as people and as programs see them."""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from pfedmma_deploy.cli.main import run
from pfedmma_deploy.data.catalog import known_datasets
from tests.layouts import by_domain, cifar10_binary, pets


@pytest.fixture(autouse=True)
def no_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PFEDMMA_DATA", raising=False)


def as_json(arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run([*arguments.split(), "--json"]) == 0
    printed = capsys.readouterr().out
    found: dict[str, Any] = json.loads(printed)
    assert printed.count("\n") == 1
    return found


def test_list_shows_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = pets(tmp_path)
    assert run(["data", "list", "--data-root", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    lines = {line.split()[0]: line for line in printed.out.splitlines()[1:]}
    assert list(lines) == list(known_datasets())
    assert lines["oxford_pets"].endswith(f"CC BY-SA 4.0             {tree.path}")
    assert lines["dtd"].rstrip().endswith("research                 -")
    assert "In the package: cifar10-sample, domains-sample." in printed.err
    found = as_json(f"data list --data-root {tmp_path}", capsys)
    (entry,) = [each for each in found["datasets"] if each["name"] == "oxford_pets"]
    assert found["data_root"] == str(tmp_path) and entry["folder"] == str(tree.path)
    assert (entry["classes"], entry["images"], entry["fetchable"]) == (37, 7349, True)


def test_info_of_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = pets(tmp_path)
    found = as_json(f"data info {tree.path}", capsys)
    assert found["present"] and found["layout"] == "split" and found["images"] == 40
    assert found["parts"] == {"train": 24, "val": 8, "test": 8}
    assert found["classes"][1] == {"name": "american bulldog", "images": 10}
    assert found["domains"] == found["clients"] == {}
    assert run(["data", "info", "oxford_pets", "--data-root", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "oxford_pets: 40 images of 4 classes\nLayout: split\n" in printed
    assert "Classes in order: abyssinian, american bulldog, american pit bull terrier," in printed


def test_info_tells_domains_and_missing_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = by_domain(
        tmp_path / "PACS", ["art_painting", "cartoon", "photo", "sketch"], ["dog", "elephant"]
    )
    assert run(["data", "info", str(tree.path)]) == 0
    printed = capsys.readouterr()
    assert "Domain        Train  Val  Test\nart_painting     20    0     0\n" in printed.out
    assert "No val and no test part: training sets images aside by its seed." in printed.err


def test_info_of_what_is_absent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "info", "oxford_pets", "--data-root", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "oxford_pets: Oxford-IIIT Pets, 37 classes, 7,349 images",
        "Licence: CC BY-SA 4.0",
        f"Not there: no folder oxford_pets or oxford-iiit-pet in {tmp_path}",
        "Expected in that folder: images/*.jpg, split_zhou_OxfordPets.json",
        "Homepage: https://www.robots.ox.ac.uk/~vgg/data/pets/",
        "split_zhou_OxfordPets.json:"
        " https://drive.google.com/file/d/1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs/view",
        "Download the images: pfedmma data fetch oxford_pets",
    ]
    assert as_json("data info sun397", capsys)["present"] is False


class Torchvision:
    """Stands in for `torchvision.datasets`: writes what CIFAR10 would download."""

    def __init__(self) -> None:
        self.called: list[tuple[str, bool]] = []

    def CIFAR10(self, root: str, *, download: bool) -> None:  # noqa: N802 - torchvision's name
        self.called.append((root, download))
        cifar10_binary(Path(root))

    def DTD(self, root: str, *, download: bool) -> None:  # noqa: N802 - torchvision's name
        raise RuntimeError("File not found or corrupted.")


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> Torchvision:
    import torchvision.datasets

    fake = Torchvision()
    for name in ("CIFAR10", "DTD"):
        monkeypatch.setattr(torchvision.datasets, name, getattr(fake, name))
    return fake


def test_fetch_says_what_it_does(
    tmp_path: Path, torchvision: Torchvision, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    assert run(["data", "fetch", "cifar10", "--data-root", str(root), "--yes"]) == 0
    printed = capsys.readouterr()
    assert torchvision.called == [(str(root), True)]
    assert printed.out == f"cifar10 is in {root}/cifar-10-batches-bin.\n"
    assert f"CIFAR-10: about 170 MB into {root}, from where torchvision " in printed.err
    assert "Licence: not stated; its page decides: https://www.cs.toronto.edu/" in printed.err
    assert as_json(f"data info cifar10 --data-root {root}", capsys)["images"] == 48


def test_torchvision_has_every_class_that_is_named() -> None:
    import torchvision.datasets

    for known in known_datasets().values():
        if known.torchvision:
            parameters = signature(getattr(torchvision.datasets, known.torchvision)).parameters
            needed = [p for p in parameters.values() if p.default is p.empty]
            assert [p.name for p in needed if p.kind is not p.VAR_KEYWORD] == ["root"]
            assert "download" in parameters and known.download_bytes


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("dtd --yes --data-root R", 1, "dtd could not be downloaded into R: File not found"),
        ("cifar10 --data-root R", 2, "asking needs a terminal; --yes downloads without asking"),
        ("cifar10 --yes", 2, "nowhere to put cifar10: give --data-root, or set the variable"),
        ("cifar11 --yes", 2, "there is no known data set 'cifar11'; did you mean 'cifar10'?"),
        ("ucf101 --yes", 2, "UCF101, middle frames cannot be fetched by a program; get it from"),
    ],
)
def test_fetch_that_cannot_be(
    arguments: str,
    code: int,
    message: str,
    tmp_path: Path,
    torchvision: Torchvision,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["data", "fetch", *arguments.split()]) == code
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == ""
    assert torchvision.called == []


def test_the_root_may_stand_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pets(tmp_path)
    monkeypatch.setenv("PFEDMMA_DATA", str(tmp_path))
    assert as_json("data info oxford_pets", capsys)["images"] == 40
