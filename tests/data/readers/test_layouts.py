"""Every layout that people have on disk: classes in order, parts, labels that fit the pixels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pfedmma_deploy.data.catalog import known_datasets
from pfedmma_deploy.data.dataset_checks import check_dataset
from pfedmma_deploy.data.datasets import load_dataset
from tests.layouts import LAYOUTS, Tree, colour, image_folder


@pytest.fixture
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Tree:
    return LAYOUTS[request.param](tmp_path)


@pytest.mark.parametrize("tree", LAYOUTS, indirect=True)
def test_a_layout_is_read_as_its_documentation_says(tree: Tree) -> None:
    data = load_dataset(tree.path)
    assert list(data.class_names) == list(tree.names)
    assert Counter(example.split for example in data.examples) == dict(tree.counts)
    assert {example.domain for example in data.examples} == tree.domains
    assert {example.client for example in data.examples} == tree.clients
    assert data.skipped == ()
    keys = [example.key for example in data.examples]
    assert len(set(keys)) == len(keys)
    for example in data.examples:
        found = data.open_image(example).getpixel((16, 16))
        assert isinstance(found, tuple)
        distance = max(abs(a - b) for a, b in zip(found, colour(example.label), strict=True))
        assert distance <= 3, f"{example.key} has the label of another class"
    assert [problem for problem in check_dataset(data) if problem.kind != "few-images"] == []


@pytest.mark.parametrize("name", known_datasets())
def test_a_known_data_set_is_found_by_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = LAYOUTS[name](tmp_path)
    assert list(load_dataset(name, root=tmp_path).class_names) == list(tree.names)
    monkeypatch.setenv("PFEDMMA_DATA", str(tmp_path))
    assert list(load_dataset(name).class_names) == list(tree.names)


def test_a_path_that_exists_wins_over_a_known_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = image_folder(tmp_path).path.rename(tmp_path / "pacs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PFEDMMA_DATA", "/nowhere")
    assert load_dataset("pacs").class_names == ("cat", "cow", "dog", "hen")
    assert own.is_dir()
