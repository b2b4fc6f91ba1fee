"""What is wrong with data in a known layout is said with the file, the line and what to do."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pfedmma_deploy.data.dataset_checks import check_dataset
from pfedmma_deploy.data.datasets import load_dataset
from pfedmma_deploy.data.readers import folders
from pfedmma_deploy.data.readers.base import Reader, StoredDataset
from pfedmma_deploy.errors import DataError
from tests.layouts import (
    Tree,
    aircraft,
    caltech,
    domainnet,
    eurosat,
    fedbn,
    hub,
    imagenet,
    manifest_csv,
    manifest_parquet,
    paint,
    pets,
    ucf,
)


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_a_known_name_that_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PFEDMMA_DATA", raising=False)
    with pytest.raises(DataError) as caught:
        load_dataset("ucf101")
    assert str(caught.value) == (
        "data set ucf101 (UCF101, middle frames) is not there: no data root is set. Expected in"
        " that folder: UCF-101-midframes/<class>/*.jpg, split_zhou_UCF101.json. Get it from"
        " https://www.crcv.ucf.edu/data/UCF101.php, split_zhou_UCF101.json from"
        " https://drive.google.com/file/d/1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y/view. Then set"
        " PFEDMMA_DATA to the folder that holds it, or name the data set's own folder"
    )
    with pytest.raises(DataError, match=f"{tmp_path} has no folder oxford_pets or oxford-iiit-pet"):
        load_dataset("oxford_pets", root=tmp_path)


def test_a_split_file_that_only_the_papers_have(tmp_path: Path) -> None:
    path = ucf(tmp_path).path
    (path / "split_zhou_UCF101.json").unlink()
    with pytest.raises(DataError, match=r"like UCF101, middle frames, but split_zhou_UCF101\.json"):
        load_dataset(path)


def test_missing_and_broken_images_of_a_split_file_are_skipped(tmp_path: Path) -> None:
    path = caltech(tmp_path).path
    images = path / "101_ObjectCategories"
    (images / "Faces" / "image_0001.jpg").unlink()
    (images / "Faces" / "image_0002.jpg").write_bytes(b"GIF89a" + bytes(20))
    data = load_dataset(path)
    assert len(data.examples) == 38
    assert [(skip.path, skip.reason) for skip in data.skipped] == [
        (
            "101_ObjectCategories/Faces/image_0001.jpg",
            "split_zhou_Caltech101.json names it, but there is no such file",
        ),
        (
            "101_ObjectCategories/Faces/image_0002.jpg",
            "not a JPEG, PNG, WebP or BMP image but a GIF image",
        ),
    ]


def test_names_in_a_split_file_of_another_maker_are_fixed(tmp_path: Path) -> None:
    path = caltech(tmp_path).path
    file = path / "split_zhou_Caltech101.json"
    file.write_text(file.read_text().replace('"face"', '"Faces"'))
    assert load_dataset(path).class_names[0] == "face"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON: "),
        ("[]", "expected {\"train\": [[path, class number, class name], ...]"),
        ('{"train": {}, "test": []}', "'train' is no list; expected"),
        ('{"train": [["a.jpg", "0", "cat"]], "test": []}', "is not [path, class number, "),
        (
            '{"train": [["a.jpg", 0, "cat"], ["b.jpg", 0, "dog"]], "test": []}',
            "class number 0 is called both 'cat' and 'dog'",
        ),
        (
            '{"train": [["a.jpg", 0, "cat"]], "test": [["a.jpg", 0, "cat"]]}',
            "names a.jpg twice (train and test)",
        ),
        (
            '{"train": [["a.jpg", 0, "cat"]], "test": []}',
            "names 1 images and none of them is there: expected images/*.jpg in",
        ),
    ],
)  # fmt: skip
def test_split_files(content: str, message: str, tmp_path: Path) -> None:
    path = pets(tmp_path).path
    (path / "split_zhou_OxfordPets.json").write_text(content)
    with pytest.raises(DataError) as caught:
        load_dataset(path)
    assert message in str(caught.value)


def test_a_split_file_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    path = pets(tmp_path).path
    paint(tmp_path / "secret.jpg", 0)
    rows = [["../../secret.jpg", 0, "abyssinian"], ["Abyssinian_1.jpg", 0, "abyssinian"]]
    (path / "split_zhou_OxfordPets.json").write_text(json.dumps({"train": rows, "test": []}))
    data = load_dataset(path)
    assert [example.key for example in data.examples] == ["images/Abyssinian_1.jpg"]
    assert data.skipped[0].path == "images/../../secret.jpg"


def test_several_and_unknown_split_files(tmp_path: Path) -> None:
    path = pets(tmp_path).path
    file = path / "split_zhou_OxfordPets.json"
    shutil.copy(file, path / "split_zhou_Mine.json")
    with pytest.raises(DataError, match="several split files"):
        load_dataset(path)
    file.unlink()
    with pytest.raises(DataError, match="no split file of a known data set; expected one of split"):
        load_dataset(path)


def test_without_its_split_file_a_data_set_has_its_authors_parts(tmp_path: Path) -> None:
    path = pets(tmp_path).path
    (path / "split_zhou_OxfordPets.json").unlink()
    (path / "annotations" / "trainval.txt").write_text(
        "Abyssinian_1 1 1 1\namerican_bulldog_11 2 2 1\n"
    )
    (path / "annotations" / "test.txt").write_text("Abyssinian_9 1 1 1\n")
    data = load_dataset(path)
    assert data.class_names == ("abyssinian", "american bulldog")
    assert [(e.key, e.label, e.split) for e in data.examples] == [
        ("images/Abyssinian_1.jpg", 0, "train"),
        ("images/Abyssinian_9.jpg", 0, "test"),
        ("images/american_bulldog_11.jpg", 1, "train"),
    ]
    (problem,) = check_dataset(data)
    assert problem.kind == "no-split-file" and problem.level == "warning"
    (path / "annotations" / "test.txt").unlink()
    with pytest.raises(DataError, match=r"annotations lacks test\.txt, and there is no split file"):
        load_dataset(path)


def test_what_torchvision_leaves_is_found_by_name(tmp_path: Path) -> None:
    inside = tmp_path / "dtd" / "dtd"
    for number, name in enumerate(["banded", "dotted"]):
        for image in range(3):
            paint(inside / "images" / name / f"{name}_{image}.jpg", number, image)
    (inside / "labels").mkdir()
    for image, part in enumerate(["train", "val", "test"]):
        lines = [f"{name}/{name}_{image}.jpg\n" for name in ("banded", "dotted")]
        (inside / "labels" / f"{part}1.txt").write_text("".join(lines))
    data = load_dataset("dtd", root=tmp_path)
    assert data.class_names == ("banded", "dotted")
    assert [example.split for example in data.examples] == ["train", "val", "test"] * 2
    assert load_dataset(tmp_path / "dtd").examples == data.examples


def test_folders_alone_when_nobody_published_parts(tmp_path: Path) -> None:
    path = eurosat(tmp_path).path
    (path / "split_zhou_EuroSAT.json").unlink()
    data = load_dataset(path)
    assert data.class_names[0] == "Annual Crop Land" and len(data.class_names) == 4
    assert {example.split for example in data.examples} == {"train"}
    path = caltech(tmp_path).path
    (path / "split_zhou_Caltech101.json").unlink()
    # Background and the second set of faces are no classes.
    assert load_dataset(path).class_names == ("face", "leopard", "accordion", "airplane")


def test_aircraft(tmp_path: Path) -> None:
    path = aircraft(tmp_path).path
    edit(path / "images_variant_val.txt", "707-320", "707-321")
    with pytest.raises(DataError, match=r"val\.txt, line 1: variant '707-321' is not in variants"):
        load_dataset(path)
    (path / "images_variant_val.txt").unlink()
    with pytest.raises(DataError, match=r"variants\.txt is there, but not images_variant_val\.txt"):
        load_dataset(path)


def test_aircraft_as_the_archive_unpacks(tmp_path: Path) -> None:
    path = aircraft(tmp_path).path
    (tmp_path / "fgvc-aircraft-2013b").mkdir()
    path.rename(tmp_path / "fgvc-aircraft-2013b" / "data")
    assert len(load_dataset(tmp_path / "fgvc-aircraft-2013b").examples) == 40
    assert len(load_dataset("fgvc_aircraft", root=tmp_path).examples) == 40


def test_imagenet(tmp_path: Path) -> None:
    path = imagenet(tmp_path).path
    edit(path / "classnames.txt", "n01440764 tench\n", "")
    with pytest.raises(DataError, match=r"no line for 1 class folders \(n01440764, \.\.\.\)"):
        load_dataset(path)
    edit(path / "classnames.txt", "n01443537 goldfish", "n01443537")
    with pytest.raises(DataError, match="line 1: 'n01443537' has no name; expected `<folder> <na"):
        load_dataset(path)


def test_imagenet_without_its_names(tmp_path: Path) -> None:
    path = imagenet(tmp_path).path
    (path / "classnames.txt").unlink()
    with pytest.raises(DataError, match=r"looks like ImageNet, but classnames\.txt is not there"):
        load_dataset(path)


def test_what_the_system_refuses_is_an_error_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path / "state.json"))

    monkeypatch.setattr("pfedmma_deploy.data.datasets.READERS", [Reader(refuse, folders.read)])
    with pytest.raises(DataError, match=r"data .*/state\.json: Permission denied"):
        load_dataset(tmp_path)


def test_imagenet_without_training_images_of_a_class(tmp_path: Path) -> None:
    path = imagenet(tmp_path).path
    shutil.rmtree(path / "images" / "train" / "n01443537")
    with pytest.raises(DataError, match=r"val/ has class folders that train/ lacks \(n01443537"):
        load_dataset(path)


def test_lists_of_domains(tmp_path: Path) -> None:
    path = domainnet(tmp_path).path
    edit(path / "real_train.txt", " 0\n", " zero\n")
    with pytest.raises(
        DataError, match=r"real_train\.txt, line 1: 'real/The_Eiffel_Tower/.* zero'"
    ):
        load_dataset(path)
    edit(path / "real_train.txt", " zero\n", " 3\n")
    with pytest.raises(DataError, match="class number 3 is called both 'alarm_clock' and 'The_Eif"):
        load_dataset(path)


def test_lists_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    path = domainnet(tmp_path).path
    (path / "splits").mkdir()
    for file in path.glob("*.txt"):
        file.rename(path / "splits" / file.name)
    assert len(load_dataset(path).examples) == 192


def test_domains_without_lists_are_folders(tmp_path: Path) -> None:
    path = domainnet(tmp_path).path
    for file in path.glob("*.txt"):
        file.unlink()
    data = load_dataset(path)
    assert isinstance(data, StoredDataset) and data.layout == "domains"
    assert {example.domain for example in data.examples} >= {"clipart", "real"}


@pytest.mark.parametrize(
    "dump",
    [
        lambda paths, labels: [paths, labels],
        lambda paths, labels: np.array([paths, labels]),
        lambda paths, labels: (np.array(paths, dtype=object), np.array(labels, dtype=object)),
        lambda paths, labels: (np.array(paths, dtype=">U99"), labels),
    ],
)
def test_pickled_lists_of_domains(
    dump: Callable[[list[str], list[str]], object], tmp_path: Path
) -> None:
    data = load_dataset(fedbn(tmp_path, dump).path)
    assert data.class_names == ("back pack", "bike", "calculator", "headphones")
    assert (len(data.examples), data.examples[0].key) == (160, "amazon/back_pack/00001.jpg")
    assert (data.examples[0].domain, data.examples[0].split) == ("amazon", "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["one"], "amazon_test.pkl is no pair of paths and class names"),
        ((["amazon/bike/00011.jpg"], []), "is no pair of paths and class names"),
        (
            (["webcam/bike/1.jpg"], ["bike"]),
            "'webcam/bike/1.jpg' is not in the folder of the domain",
        ),
        (([["x"]], [["y"]]), "holds something else than texts"),
        (Path("x"), "read without running what is in it: the name 'pathlib"),
        (np.zeros(3), "an array of type f8 where texts should be"),
    ],
)
def test_pickled_lists_of_another_form(content: object, message: str, tmp_path: Path) -> None:
    path = fedbn(tmp_path).path
    (path / "amazon_test.pkl").write_bytes(pickle.dumps(content, protocol=4))
    with pytest.raises(DataError) as caught:
        load_dataset(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("path,label", "path,lable", "has no column 'label'; found path, lable, client"),
        ("domain", "domian", "has a column 'domian'; did you mean 'domain'?; rename or remove it"),
        ("images/001.jpg,cat", "images/001.jpg,", "row 3: label is empty"),
        ("images/001.jpg", "images/000.jpg", "images/000.jpg stands in an earlier row"),
        (",train,", ",training,", "row 2: split 'training'; expected train, val or test"),
        ('"a cat, sitting"', "a cat, sitting", "line 2: 7 values for 6 columns; texts with a com"),
    ],
)
def test_manifests(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = manifest_csv(tmp_path).path
    edit(path, old, new)
    with pytest.raises(DataError) as caught:
        load_dataset(path)
    assert message in str(caught.value)


def test_a_manifest_carries_captions_and_its_own_order(tmp_path: Path) -> None:
    path = manifest_csv(tmp_path).path
    (path.parent / "classes.txt").write_text("hen\ncat\ndog\ncow\n")
    (path.parent / "images" / "003.jpg").unlink()
    data = load_dataset(path)
    assert data.class_names == ("hen", "cat", "dog", "cow")
    first = data.examples[0]
    assert (first.key, first.label, first.client) == ("images/000.jpg", 1, "south")
    assert (first.domain, first.caption) == ("photo", "a cat, sitting")
    assert data.skipped[0].reason == "farm.csv names it, but there is no such file"


def test_a_manifest_needs_two_columns_only(tmp_path: Path) -> None:
    paint(tmp_path / "a.jpg", 0)
    paint(tmp_path / "b.jpg", 1)
    (tmp_path / "m.csv").write_text("label,path,photographer\ncat,a.jpg,Eve\ndog,b.jpg,Bob\n")
    data = load_dataset(tmp_path / "m.csv")
    assert [(e.key, e.label, e.split, e.client, e.caption) for e in data.examples] == [
        ("a.jpg", 0, "train", None, None),
        ("b.jpg", 1, "train", None, None),
    ]


@pytest.mark.parametrize(("module", "make"), [("pyarrow", manifest_parquet), ("datasets", hub)])
def test_what_an_extra_is_needed_for(
    module: str, make: Callable[[Path], Tree], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(module)
    path = make(tmp_path).path
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=r"pip install 'pfedmma-deploy\[data\]'"):
        load_dataset(path)


def test_a_damaged_parquet_table(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "m.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"m\.parquet cannot be read as a Parquet table"):
        load_dataset(tmp_path / "m.parquet")


def test_saved_data_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_dict({"image": ["x"], "label": [0]})
    one.save_to_disk(str(tmp_path / "one"))
    with pytest.raises(DataError, match=r"no column of images; found image \(Value\), label \(Val"):
        load_dataset(tmp_path / "one")
    images = [Image.new("RGB", (8, 8), (i * 20, 0, 0)) for i in range(4)]
    rows = {
        "picture": images,
        "label": ["dog", "cat", "dog", "cat"],
        "caption": ["a", "b", None, "d"],
    }
    features = datasets.Features(
        picture=datasets.Image(), label=datasets.Value("string"), caption=datasets.Value("string")
    )
    whole = datasets.Dataset.from_dict(rows, features=features)
    whole.select([3, 2, 1]).save_to_disk(str(tmp_path / "some"))
    data = load_dataset(tmp_path / "some")
    assert data.class_names == ("cat", "dog")
    assert [(e.key, e.label, e.caption) for e in data.examples] == [
        ("train-0000000", 0, "d"),
        ("train-0000001", 1, None),
        ("train-0000002", 0, "b"),
    ]
    assert data.open_image(data.examples[0]).getpixel((0, 0)) == (60, 0, 0)
    datasets.DatasetDict({"extra": whole}).save_to_disk(str(tmp_path / "dict"))
    with pytest.raises(DataError, match="has a part 'extra'; expected train, validation"):
        load_dataset(tmp_path / "dict")


def test_a_broken_image_of_a_saved_data_set_is_skipped(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"])
    )
    good = tmp_path / "good.png"
    Image.new("RGB", (8, 8)).save(good)
    rows = {
        "image": [{"bytes": good.read_bytes(), "path": None}, {"bytes": b"no", "path": None}, None],
        "label": [0, 1, 1],
    }
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "d"))
    data = load_dataset(tmp_path / "d")
    assert [example.key for example in data.examples] == ["train-0000000"]
    assert [skip.reason for skip in data.skipped] == [
        "not a JPEG, PNG, WebP or BMP image, or its header is damaged",
        "the row has no image",
    ]


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "photos.zip").touch()
    with pytest.raises(DataError, match=r"photos\.zip: it is a file; expected a folder of images"):
        load_dataset(tmp_path / "photos.zip")
