"""Tables of papers on made-up data sets of their names, with a tiny backbone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pfedmma_deploy.backbone import loading
from pfedmma_deploy.backbone.loading import require_weights
from pfedmma_deploy.config import DEFAULTS
from pfedmma_deploy.data.catalog import known_datasets
from pfedmma_deploy.errors import BackboneError, DataError, UsageError
from pfedmma_deploy.methods.registry import METHODS
from pfedmma_deploy.progress import Silent
from pfedmma_deploy.report.protocol_files import protocol_dict, protocol_markdown, write_protocol
from pfedmma_deploy.report.protocols import (
    ProtocolRun,
    find_protocol,
    known_protocols,
    run_protocol,
)
from pfedmma_deploy.report.published import published_for
from tests import layouts, tinyclip
from tests.federated.conftest import one_thread

__all__ = ["one_thread"]

SMALL: dict[str, Any] = {
    "backbone": tinyclip.NAME,
    "pretrained": "random",
    "clients": 2,
    "shots": 2,
    "rounds": 1,
    "local_epochs": 1,
}
METHODS_TRIED = ("pfedmma", "zero-shot")


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of the paper's seven data sets, DTD without its images, and Office-Caltech10."""
    place = tmp_path_factory.mktemp("data")
    for make in (layouts.flowers, layouts.caltech, layouts.pets, layouts.office_caltech):
        make(place)
    shutil.rmtree(layouts.textures(place).path / "images")
    tinyclip.register()
    return place


def run(
    name: str, root: Path, out: Path, seeds: Sequence[int] = (0, 1), **changes: Any
) -> tuple[ProtocolRun, list[str]]:
    told = Notes()
    given = {**SMALL, "data": str(root), **changes}
    found = run_protocol(
        find_protocol(name), seeds, given, out, methods=METHODS_TRIED, progress=told
    )
    return found, told.notes


@pytest.fixture(scope="module")
def paper(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ProtocolRun, list[str], Path]:
    out = tmp_path_factory.mktemp("paper")
    return *run("pfedmma-paper", root, out), out


def test_what_is_there_is_run_and_the_rest_is_named(
    paper: tuple[ProtocolRun, list[str], Path], root: Path
) -> None:
    found, notes, _ = paper
    assert list(found.comparisons) == ["oxford_flowers", "caltech-101", "oxford_pets"]
    assert list(found.missing) == ["sun397", "dtd", "ucf101", "food-101"]
    assert found.missing["sun397"] == f"no folder sun397 in {root}"
    assert notes[0].startswith(
        f"4 of 7 data sets of pfedmma-paper are left out: sun397 (no folder sun397 in {root}), dtd"
    )
    assert notes[0].endswith("`pfedmma data info NAME` says what is expected and where to get it")


def test_all_data_sets_have_a_seed_before_any_has_the_next(
    paper: tuple[ProtocolRun, list[str], Path],
) -> None:
    _, notes, out = paper
    done = [note.split(", lr")[0] for note in notes if ", lr" in note]
    expected = []
    for seed in (0, 1):
        for name in ("oxford_flowers", "caltech-101", "oxford_pets"):
            expected += [f"{name}: {method}, seed {seed}" for method in METHODS_TRIED]
    assert done == expected
    assert (out / "caltech-101" / "trials" / "pfedmma" / "seed-1" / "result.json").exists()


def test_the_protocol_is_what_runs_but_for_what_is_given(
    paper: tuple[ProtocolRun, list[str], Path],
) -> None:
    found, _, _ = paper
    config = found.comparisons["caltech-101"].config
    assert (config.batch_size, config.lr, config.weight_decay) == (16, 1e-3, 5e-4)
    assert (config.partition.scheme, config.partition.classes) == ("disjoint", "base-novel")
    assert config.rounds == 1
    assert found.changed == {name: SMALL[name] for name in SMALL if name != "pretrained"}


def test_published_figures_stand_beside_the_mean_over_data_sets(
    paper: tuple[ProtocolRun, list[str], Path],
) -> None:
    found, _, out = paper
    values = protocol_dict(found)
    ours = values["mean"]["rows"][0]
    for number, seed in enumerate(ours["by_seed"]):
        of_sets = []
        for table in values["datasets"].values():
            of_sets.append(table["rows"][0]["by_seed"][number]["hm3"])
        assert seed["hm3"] == pytest.approx(sum(of_sets) / 3)
    assert [table["against"] for table in values["mean"]["differences"]] == ["pfedmma", "zero-shot"]
    assert values["published"][-1]["hm3"] == 84.15
    text = protocol_markdown(values)
    local = f"{ours['local']['mean']:.1f} ± {ours['local']['interval']:.1f}"
    assert f"| pfedmma | {local} ({ours['local']['deviation']:.1f}) | 97.17 |" in text
    assert "| fedotp | - | 97.34 | - | 18.00 | - | 36.69 | - | 31.08 |" in text
    assert "4 of 7 data sets of pfedmma-paper are left out: sun397" in text
    assert "So our means are not over the same data sets as theirs." in text
    assert "Not as in the protocol: backbone test-clip, clients 2, shots 2, rounds 1" in text
    assert "| [caltech-101](caltech-101/compare.md) | pfedmma |" in text
    files = write_protocol(found)
    assert [file.relative_to(out).as_posix() for file in files][:3] == [
        "protocol.md",
        "protocol.json",
        "oxford_flowers/compare.json",
    ]
    assert json.loads((out / "protocol.json").read_text("utf-8"))["protocol"] == "pfedmma-paper"


def test_a_table_by_domain_says_what_is_wrong_with_the_public_code(
    root: Path, tmp_path: Path
) -> None:
    changes = {"clients": 4, "shots": 0, "dirichlet_beta": 10.0}
    found, _ = run("pfedmma-office", root, tmp_path, (0,), **changes)
    config = found.comparisons["office_caltech10"].config
    assert (config.partition.scheme, config.partition.classes) == ("domain", "all")
    text = protocol_markdown(protocol_dict(found))
    assert "so that images stand beside other images' labels" in text
    assert "The paper's figures of this table are not in this package." in text
    assert "| pfedmma |" in text


def test_nothing_of_the_data_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        run("pfedmma-office", tmp_path, tmp_path / "out")
    assert str(caught.value) == (
        "1 of 1 data sets of pfedmma-office are left out: office_caltech10 (no folder "
        f"office_caltech10, office_caltech_10 or office_caltech_10_dataset in {tmp_path}); "
        "`pfedmma data info NAME` says what is expected and where to get it"
    )


def test_no_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PFEDMMA_DATA", raising=False)
    with pytest.raises(UsageError) as caught:
        run_protocol(find_protocol("pfedmma-office"), [0], SMALL, tmp_path)
    assert str(caught.value) == (
        "--protocol pfedmma-office needs the folder that holds office_caltech10: name it with "
        "--data, or set PFEDMMA_DATA"
    )


def test_weights_are_never_downloaded(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_is_downloaded", lambda entry: False)
    given = {"data": str(root)}
    with pytest.raises(BackboneError) as caught:
        run_protocol(find_protocol("pfedmma-paper"), [0], given, tmp_path / "out")
    assert str(caught.value) == (
        "The weights 'openai' of ViT-B-16 are not on this machine: name a file of weights with "
        "--pretrained, or fetch them once with `pfedmma evaluate --data cifar10-sample --backbone "
        "ViT-B-16 --pretrained openai`, which says first what it fetches."
    )
    assert not (tmp_path / "out").exists()


def test_weights_that_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights.safetensors"
    file.touch()
    monkeypatch.setattr(loading, "_is_downloaded", lambda entry: False)
    require_weights("pfedmma-tiny", None)
    require_weights("ViT-B-16", str(file))
    require_weights("ViT-B-16", "random")
    monkeypatch.setattr(loading, "_is_downloaded", lambda entry: True)
    require_weights("ViT-B-16", "openai")
    with pytest.raises(BackboneError, match="neither a weights file nor a pretrained tag"):
        require_weights("ViT-B-16", str(tmp_path / "other.safetensors"))


def test_an_unknown_protocol() -> None:
    with pytest.raises(UsageError, match="no protocol is called 'pfedmma-papr'; did you mean"):
        find_protocol("pfedmma-papr")


@pytest.mark.parametrize("name", list(known_protocols()))
def test_protocols_name_what_there_is(name: str) -> None:
    protocol = find_protocol(name)
    assert set(protocol.datasets) <= set(known_datasets())
    assert set(protocol.methods) <= set(METHODS)
    assert set(protocol.options) <= set(DEFAULTS)
    for row in published_for(name):
        assert tuple(row["datasets"]) == protocol.datasets
        assert row["method"] in protocol.methods
