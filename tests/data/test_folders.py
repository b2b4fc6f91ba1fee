"""Folders of images in every form, named as classes, with every oddity of real file systems."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from pfedmma_deploy.data.dataset_checks import check_dataset
from pfedmma_deploy.data.datasets import load_dataset
from pfedmma_deploy.data.readers.base import StoredDataset
from pfedmma_deploy.data.readers.folders import LAYOUTS
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.progress import Item, Silent
from pfedmma_deploy.types import Skipped


def make(root: Path, *keys: str) -> Path:
    """Writes a small image at every key; a key that ends with a slash is an empty folder."""
    for number, key in enumerate(keys):
        path = root / key
        if key.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            fmt = {".jpg": "JPEG", ".jpeg": "JPEG"}.get(path.suffix.lower(), "PNG")
            Image.new("RGB", (4, 4), (number, 0, 0)).save(path, fmt)
    return root


def load(root: Path) -> StoredDataset:
    dataset = load_dataset(root)
    assert isinstance(dataset, StoredDataset)
    return dataset


def rows(dataset: StoredDataset) -> list[tuple[str, str, str, str | None]]:
    return [
        (example.key, dataset.class_names[example.label], example.split, example.client)
        for example in dataset.examples
    ]


def warnings_of(dataset: StoredDataset) -> list[str]:
    return [str(problem) for problem in check_dataset(dataset)]


def test_class_folders(tmp_path: Path) -> None:
    dataset = load(make(tmp_path / "pets", "dog/2.PNG", "dog/1.jpg", "cat/a b.jpeg", "Ant/x.jpg"))
    assert dataset.name == "pets"
    assert dataset.class_names == ("Ant", "cat", "dog")
    assert rows(dataset) == [
        ("Ant/x.jpg", "Ant", "train", None),
        ("cat/a b.jpeg", "cat", "train", None),
        ("dog/1.jpg", "dog", "train", None),
        ("dog/2.PNG", "dog", "train", None),
    ]
    assert dataset.open_image(dataset.examples[3]).getpixel((0, 0)) == (0, 0, 0)
    assert dataset.skipped == ()
    assert warnings_of(dataset) == []


def test_split_folders(tmp_path: Path) -> None:
    keys = ("train/cat/1.jpg", "train/dog/1.jpg", "Validation/cat/2.jpg", "test/dog/2.jpg")
    assert rows(load(make(tmp_path, *keys))) == [
        ("Validation/cat/2.jpg", "cat", "val", None),
        ("test/dog/2.jpg", "dog", "test", None),
        ("train/cat/1.jpg", "cat", "train", None),
        ("train/dog/1.jpg", "dog", "train", None),
    ]


def test_client_folders_of_both_kinds(tmp_path: Path) -> None:
    keys = ("site 1/cat/1.jpg", "site 2/train/cat/1.jpg", "site 2/test/dog/1.jpg")
    assert rows(load(make(tmp_path, *keys))) == [
        ("site 1/cat/1.jpg", "cat", "train", "site 1"),
        ("site 2/test/dog/1.jpg", "dog", "test", "site 2"),
        ("site 2/train/cat/1.jpg", "cat", "train", "site 2"),
    ]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert load(make(tmp_path / "a", "bus/1.jpg", "train/1.jpg")).class_names == ("bus", "train")
    keys = ("train/bus/1.jpg", "train/train/1.jpg", "test/train/1.jpg")
    assert load(make(tmp_path / "b", *keys)).class_names == ("bus", "train")
    dataset = load(make(tmp_path / "c", "x/bus/1.jpg", "x/train/1.jpg", "y/bus/1.jpg"))
    assert [row[1:] for row in rows(dataset)] == [
        ("bus", "train", "x"),
        ("train", "train", "x"),
        ("bus", "train", "y"),
    ]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            ("cat/1.jpg", "2.jpg"),
            "the layout is unclear; found\n  2.jpg  (in no folder)\n  cat/1.jpg  (<class>/image)\n",
        ),
        (("1.jpg",), "the layout is unclear; found\n  1.jpg  (in no folder)\n"),
        (
            ("cat/1.jpg", "a/dog/1.jpg"),
            "the layout is unclear; found\n  a/dog/1.jpg  (<client>/<class>/image)\n"
            "  cat/1.jpg  (<class>/image)\n",
        ),
        (
            ("train/cat/1.jpg", "extra/cat/1.jpg"),
            "the layout is unclear; found\n  extra/cat/1.jpg  (<client>/<class>/image)\n"
            "  train/cat/1.jpg  (train/<class>/image)\n",
        ),
        (
            ("a/b/cat/1.jpg",),
            "the layout is unclear; found\n  a/b/cat/1.jpg  (3 folders deep)\n",
        ),
        (
            ("train/1.jpg", "test/1.jpg"),
            "images lie directly in test, train, without class folders; ",
        ),
        (("a/cat/1.jpg", "b/train/1.jpg"), "images lie directly in train, without class folders; "),
        (
            ("a/train/cat/1.jpg", "a/dog/1.jpg"),
            "the layout is unclear; found class folders both directly in it (dog) and in its split"
            " folders; ",
        ),
        (("cat/", "dog/"), "no images found; "),
    ],
)
def test_unclear_layouts_name_what_was_found(
    tmp_path: Path, keys: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        load(make(tmp_path, *keys))
    assert str(caught.value).startswith(f"data folder {tmp_path}")
    assert str(caught.value).endswith(f": {message}{LAYOUTS}")


def test_no_images_says_which_files_there_are(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.heic").touch()
    (tmp_path / "cat" / "2.gif").touch()
    with pytest.raises(DataError, match=r"no images found, only 1 \.gif, 1 \.heic; expected one"):
        load(tmp_path)


def test_absent_data_names_the_samples(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset("cifar-sample")
    assert str(caught.value) == (
        "there is no folder 'cifar-sample' and no embedded sample or data set of that name; did you"
        " mean 'cifar10-sample'? The samples are cifar10-sample, domains-sample, and `pfedmma data"
        " list` shows the data sets"
    )
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file: it is a file; expected a folder of images"):
        load_dataset(tmp_path / "file")


def test_samples_load_by_name() -> None:
    assert load_dataset("cifar10-sample").name == "cifar10-sample"


def test_broken_images_are_skipped_with_path_and_reason(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg")
    (tmp_path / "cat/empty.jpg").touch()
    (tmp_path / "cat/text.png").write_text("not an image")
    (tmp_path / "dog/2.jpg").write_bytes((tmp_path / "dog/1.jpg").read_bytes()[:-30])
    (tmp_path / "dog/link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "dog/pipe.jpg")
    (tmp_path / "dog/folder.jpg").mkdir()
    dataset = load(tmp_path)
    assert [example.key for example in dataset.examples] == ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg"]
    reasons = {skipped.path: skipped.reason for skipped in dataset.skipped}
    assert reasons.pop("dog/2.jpg").startswith("damaged: ")
    assert reasons == {
        "cat/empty.jpg": "the file is empty",
        "cat/text.png": "not a JPEG, PNG, WebP or BMP image, or its header is damaged",
        "dog/link.jpg": "a link to nothing",
        "dog/pipe.jpg": "not a regular file",
    }
    (warning,) = warnings_of(dataset)
    assert warning.startswith("files skipped because they cannot be read (5): cat/empty.jpg (the")
    assert warning.endswith("Replace or remove them; everything else is used.")


def test_without_verifying_only_names_are_read(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.jpg", "dog/1.jpg")
    (tmp_path / "cat/2.jpg").write_text("not an image")
    assert len(load_dataset(tmp_path, verify=False).examples) == 3


def test_progress_counts_images(tmp_path: Path) -> None:
    make(tmp_path, *(f"c{number % 2}/{number}.png" for number in range(70)))
    counted: list[tuple[str, int, int]] = []

    class Counter(Silent):
        def track(self, items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
            taken = list(items)
            counted.append((label, len(taken), total))
            yield from taken

    load_dataset(tmp_path, progress=Counter())
    assert counted == [("images read", 70, 70)]


def test_hidden_and_system_names_are_passed_over(tmp_path: Path) -> None:
    keys = ("cat/1.jpg", "dog/1.jpg", ".git/x/1.jpg", "cat/._1.jpg", "__MACOSX/cat/1.jpg")
    dataset = load(make(tmp_path, *keys))
    assert dataset.class_names == ("cat", "dog")
    assert len(dataset.examples) == 2
    assert warnings_of(dataset) == []


def test_other_files_are_left_alone_and_counted(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.jpg", "dog/1.jpg")
    for name in ("cat/1.txt", "cat/2.txt", "dog/1.GIF", "README"):
        (tmp_path / name).touch()
    (problem,) = check_dataset(load(tmp_path))
    assert (problem.kind, problem.count, problem.level) == ("other-files", 4, "warning")
    assert problem.examples == ("1 .gif", "2 .txt", "1 no suffix")


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", "1.jpg", "2.jpg")
    root = make(tmp_path / "data", "cat/1.jpg")
    (root / "dog").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "cat" / "up").symlink_to(root, target_is_directory=True)
    (root / "cat" / "self").symlink_to(root / "cat", target_is_directory=True)
    dataset = load(root)
    assert [e.key for e in dataset.examples] == ["cat/1.jpg", "dog/1.jpg", "dog/2.jpg"]
    reason = "a link back to a folder that contains it"
    assert dataset.skipped == (Skipped("cat/self", reason), Skipped("cat/up", reason))


def test_folders_that_link_to_each_other_come_to_an_end(tmp_path: Path) -> None:
    names = [f"f{number}" for number in range(6)]
    make(tmp_path, *(f"{name}/" for name in names))
    for name in names:
        for other in names:
            if other != name:
                (tmp_path / name / other).symlink_to(tmp_path / other, target_is_directory=True)
    with pytest.raises(DataError, match="no images found, only f0/f1"):
        load(tmp_path)


@pytest.mark.skipif(os.name != "posix" or os.uname().sysname == "Darwin", reason="names are text")
def test_names_that_are_no_unicode_are_skipped(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.jpg", "dog/1.jpg")
    (tmp_path / "cat" / os.fsdecode(b"caf\xe9.jpg")).touch()
    assert load(tmp_path).skipped == (
        Skipped("cat/caf\\udce9.jpg", "its name is not valid Unicode; rename it"),
    )


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything"
)
def test_an_unreadable_folder_is_skipped(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.jpg", "dog/1.jpg", "cow/1.jpg")
    (tmp_path / "cow").chmod(0)
    try:
        skipped = load(tmp_path).skipped
    finally:
        (tmp_path / "cow").chmod(0o755)
    assert skipped == (Skipped("cow", "the folder cannot be read: Permission denied"),)


def test_underscores_become_spaces(tmp_path: Path) -> None:
    dataset = load(make(tmp_path, "traffic_light/1.jpg", "stop__sign/1.jpg", "_/1.jpg"))
    assert dataset.class_names == ("_", "stop sign", "traffic light")


def test_classes_file_gives_order_and_names(tmp_path: Path) -> None:
    make(tmp_path, "n02/1.jpg", "n01/1.jpg", "zebra/1.jpg", "big_cat/1.jpg", "a, b/1.jpg")
    lines = "\ufeff# order of the study\nzebra\n\nn02,tabby cat\nn01\thound, grey\nbig cat\na, b\n"
    (tmp_path / "classes.txt").write_text(lines, encoding="utf-8")
    dataset = load(tmp_path)
    assert dataset.class_names == ("zebra", "tabby cat", "hound, grey", "big cat", "a, b")
    assert {key: name for key, name, *_ in rows(dataset)} == {
        "zebra/1.jpg": "zebra",
        "n02/1.jpg": "tabby cat",
        "n01/1.jpg": "hound, grey",
        "big_cat/1.jpg": "big cat",
        "a, b/1.jpg": "a, b",
    }
    assert warnings_of(dataset) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "cat\ndogs\n",
            "classes.txt, line 2: there is no class folder 'dogs'; did you mean 'dog'?; expected"
            " one line per folder: its name, or `folder,name`",
        ),
        ("cat\ndog\ncat\n", "classes.txt, line 3: class folder 'cat' stands there twice"),
        (
            "cat\n",
            "classes.txt has no line for the class folders dog; add them where they belong in the"
            " class order, or remove the folders",
        ),
    ],
)
def test_classes_file_that_does_not_match(tmp_path: Path, text: str, message: str) -> None:
    make(tmp_path, "cat/1.jpg", "dog/1.jpg")
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert str(caught.value).endswith(message)


def test_classes_file_that_is_no_text(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.jpg", "dog/1.jpg")
    (tmp_path / "classes.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"classes\.txt cannot be read as UTF-8 text"):
        load(tmp_path)
