"""CIFAR's pickles are read, and whatever else a pickle can hold is refused without being run."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfedmma_deploy.data.checks import check_dataset
from pfedmma_deploy.data.datasets import load_dataset
from pfedmma_deploy.data.readers.pickles import array_of, read_pickle
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Example
from tests.layouts import cifar10_binary, cifar10_python, cifar100_binary


def short(text: bytes) -> bytes:
    """SHORT_BINSTRING, as Python 2 writes a text."""
    return b"U" + struct.pack("B", len(text)) + text


def python2_batch(rows: np.ndarray[Any, np.dtype[np.uint8]], labels: list[int]) -> bytes:
    """A batch as the authors' Python 2 wrote it (protocol 2), instruction by instruction."""
    numbers = b"".join(b"K" + struct.pack("B", label) for label in labels)
    data = rows.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85q\tU\x01bq\n"
        b"\x87q\x0bRq\x0c(K\x01M"
        + struct.pack("<H", len(rows))
        + b"M\x00\x0c\x86q\rcnumpy\ndtype\n"
        b"q\x0eU\x02u1q\x0fK\x00K\x01\x87q\x10Rq\x11(K\x03U\x01|q\x12NNNJ\xff\xff\xff\xffJ\xff\xff"
        b"\xff\xffK\x00tq\x13b\x89T" + struct.pack("<i", len(data)) + data + b"tq\x14b"
    )
    return (
        b"\x80\x02}q\x01(" + short(b"batch_label") + b"q\x02" + short(b"training batch 1 of 5")
        + b"q\x03" + short(b"labels") + b"q\x04]q\x05(" + numbers + b"e" + short(b"data") + b"q\x06"
        + array + short(b"filenames") + b"q\x15]q\x16(" + short(b"camion_s_000148.png") + b"eu."
    )  # fmt: skip


def test_a_batch_as_python_2_wrote_it(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (3, 3072)).astype(np.uint8)
    content = python2_batch(rows, [6, 9, 4])
    (tmp_path / "batch").write_bytes(content)
    # The stream above is what Python itself takes for a pickled batch.
    expected = pickle.loads(content, encoding="latin1")  # our own bytes
    found = read_pickle(tmp_path / "batch")
    assert found["labels"] == expected["labels"] == [6, 9, 4]
    assert found["batch_label"] == "training batch 1 of 5"
    np.testing.assert_array_equal(array_of(found["data"]), rows)
    np.testing.assert_array_equal(expected["data"], rows)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_arrays_of_every_protocol(protocol: int, tmp_path: Path) -> None:
    rows = np.arange(24, dtype=np.uint8).reshape(4, 6)
    file = tmp_path / "batch"
    try:
        file.write_bytes(pickle.dumps({"data": rows, "labels": [1, 2]}, protocol=protocol))
        found = read_pickle(file)
        np.testing.assert_array_equal(array_of(found["data"]), rows)
    except DataError as error:
        # Protocol 5 keeps arrays in a form of numpy's own that CIFAR has never had.
        assert protocol == 5 and "the name 'numpy" in str(error)


class Harm:
    """Asks for a call when it is unpickled."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.function, self.arguments


def test_nothing_in_a_pickle_is_run(tmp_path: Path) -> None:
    tree = cifar10_python(tmp_path)
    witness = tmp_path / "witness"
    batch = tree.path / "data_batch_3"
    for harm in (Harm(Path.touch, witness), Harm(eval, f"open({str(witness)!r}, 'w')")):
        for protocol in (2, 4):
            batch.write_bytes(pickle.dumps({"labels": [0], "data": harm}, protocol=protocol))
            with pytest.raises(DataError, match="read without running what is in it: the name '"):
                load_dataset(tree.path)
    assert not witness.exists()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_batch_is_an_error_of_the_data(data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(python2_batch(np.zeros((2, 3072), np.uint8), [1, 2]))
    # Anywhere but in the pixels, where every change is still an image.
    places = [*range(250), *range(len(content) - 40, len(content))]
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.sampled_from(places))] = data.draw(st.integers(0, 255))
    file = tmp_path / "batch"
    file.write_bytes(bytes(content[: data.draw(st.integers(1, len(content)))]))
    try:
        found = read_pickle(file)
        array_of(found["data"])
    except (DataError, ValueError, LookupError, TypeError):
        pass


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
