"""CIFAR as its archives unpack, and what is wrong with damaged ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfedmma_deploy.data.dataset_checks import check_dataset
from pfedmma_deploy.data.datasets import load_dataset
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Example
from tests.layouts import cifar10_binary, cifar10_python, cifar100_binary


def test_a_class_called_train_is_no_folder(tmp_path: Path) -> None:
    path = cifar100_binary(tmp_path).path
    (path / "fine_label_names.txt").write_text("bicycle\nbus\ntank\ntrain\n")
    data = load_dataset(path)
    assert data.class_names[3] == "train"
    assert list(check_dataset(data)) == []


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    tree = cifar10_python(tmp_path)
    (tree.path / "data_batch_4").unlink()
    with pytest.raises(DataError, match="test_batch is there, but not data_batch_4; expected data"):
        load_dataset(tree.path)


def test_records_of_another_length_are_refused(tmp_path: Path) -> None:
    tree = cifar10_binary(tmp_path)
    (tree.path / "data_batch_2.bin").write_bytes(b"\0" * 3000)
    with pytest.raises(DataError, match=r"data_batch_2\.bin is damaged: .*rows of 3,072 bytes"):
        load_dataset(tree.path)


def test_labels_beyond_the_names_are_refused(tmp_path: Path) -> None:
    tree = cifar10_binary(tmp_path)
    (tree.path / "data_batch_2.bin").write_bytes(b"\x09" + b"\0" * 3072)
    with pytest.raises(DataError, match="labels from 0 to 9, but 4 class names"):
        load_dataset(tree.path)


def test_the_folder_above_is_enough(tmp_path: Path) -> None:
    cifar10_python(tmp_path / "cifar10")
    data = load_dataset(tmp_path / "cifar10")
    assert data.name == "cifar10" and len(data.examples) == 48
    with pytest.raises(DataError, match="cifar10 has no image train-99999"):
        data.open_image(Example("train-99999", 0, "train"))
