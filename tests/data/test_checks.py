"""Everything that is wrong is said before training, and what cannot work is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pfedmma_deploy.data.class_names import class_key
from pfedmma_deploy.data.dataset_checks import (
    check_dataset,
    find_problem,
    problem_kinds,
    require_usable,
)
from pfedmma_deploy.data.datasets import load_dataset
from pfedmma_deploy.errors import DataError
from pfedmma_deploy.types import Federation
from tests.data.toy import partitioned


def make(root: Path, sizes: dict[str, int]) -> Path:
    """Folders with that many images each."""
    for folder, size in sizes.items():
        (root / folder).mkdir(parents=True)
        for number in range(size):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(root / folder / f"{number}.png")
    return root


def build(root: Path, **options: Any) -> Federation:
    values: dict[str, Any] = {"clients": 2, "classes": "all", "num_shots": 0}
    return partitioned(load_dataset(root), **(values | options))


def refusal(root: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        build(root, **options)
    return str(caught.value)


def test_a_problem_reads_as_a_sentence() -> None:
    (problem,) = find_problem("empty-class", [f"c{number}" for number in range(8)])
    assert str(problem) == (
        "class folders without a readable image (8): c0, c1, c2, c3, c4 and 3 more. Put images"
        " (.jpg .jpeg .png .webp .bmp) into them, or remove the folders."
    )
    assert find_problem("empty-class", []) == []


@pytest.mark.parametrize("kind", problem_kinds())
def test_every_kind_has_advice(kind: str) -> None:
    (problem,) = find_problem(kind, ["somewhere"])
    assert problem.level == problem_kinds()[kind].level
    assert problem.advice.endswith(".")
    assert problem.examples == ("somewhere",)


def test_all_fatal_problems_are_told_at_once() -> None:
    problems = [
        *find_problem("empty-class", ["cat"]),
        *find_problem("few-images", ["dog"]),
        *find_problem("empty-client", ["a"]),
    ]
    with pytest.raises(DataError) as caught:
        require_usable(problems)
    assert str(caught.value) == (
        "the data cannot be trained on as they are:\n"
        "- class folders without a readable image (1): cat. Put images (.jpg .jpeg .png .webp .bmp)"
        " into them, or remove the folders.\n"
        "- client folders without a readable image (1): a. Put class folders with images into them,"
        " or remove the folders."
    )
    assert require_usable(problems[1:2]) == (problems[1],)


@pytest.mark.parametrize(
    ("one", "other"), [("Cat", "cat"), ("traffic_light", "Traffic  light"), ("café", "cafe\u0301")]
)
def test_names_that_are_the_same_to_a_reader(one: str, other: str) -> None:
    assert class_key(one) == class_key(other)


def test_classes_that_differ_only_in_case(tmp_path: Path) -> None:
    message = refusal(make(tmp_path, {"Cat": 8, "cat": 8, "dog": 8}))
    assert message == (
        "the data cannot be trained on as they are:\n- class names that differ only in case,"
        " spacing or underscores (1): 'Cat' and 'cat'. They are one class to CLIP: merge the"
        " folders, or give them other names in classes.txt."
    )


def test_classes_that_differ_only_in_case_between_clients(tmp_path: Path) -> None:
    make(tmp_path, {"a/Cat": 8, "a/dog": 8, "b/cat": 8, "b/dog": 8})
    assert "'Cat' and 'cat'" in refusal(tmp_path, partition="folders")


def test_a_single_class(tmp_path: Path) -> None:
    assert "a single class (1): cat. There is nothing to tell apart" in refusal(
        make(tmp_path, {"cat": 8})
    )


def test_a_single_base_class(tmp_path: Path) -> None:
    make(tmp_path, {"cat": 8, "dog": 8})
    message = refusal(tmp_path, classes="base-novel", clients=1)
    assert "a single base class (1): cat." in message
    assert "--classes all" in message


def test_an_empty_class_folder(tmp_path: Path) -> None:
    make(tmp_path, {"cat": 8, "cow": 0, "dog": 8, "ox": 1})
    (tmp_path / "ox" / "0.png").write_text("broken")
    assert "class folders without a readable image (2): cow, ox. Put images" in refusal(tmp_path)


def test_an_empty_client(tmp_path: Path) -> None:
    make(tmp_path, {"a/cat": 8, "a/dog": 8, "b": 0, "c/cat": 0})
    message = refusal(tmp_path, partition="folders")
    assert "client folders without a readable image (2): b, c. Put class folders" in message


def test_a_client_without_one_of_the_classes(tmp_path: Path) -> None:
    make(tmp_path, {"a/cat": 8, "a/dog": 8, "b/cat": 8, "b/dog": 0})
    folder, client = build(tmp_path, partition="folders").warnings
    assert folder == (
        "empty class folders of classes that have images elsewhere (1): b/dog. There the class"
        " counts as absent."
    )
    assert client.startswith("clients with one class only (1): b (cat).")


def test_a_client_with_one_class_is_trained_and_told(tmp_path: Path) -> None:
    make(tmp_path, {"a/cat": 8, "a/dog": 8, "b/cat": 8})
    federation = build(tmp_path, partition="folders")
    assert [client.classes for client in federation.clients] == [(0, 1), (0,)]
    (warning,) = federation.warnings
    assert warning == (
        "clients with one class only (1): b (cat). They are trained, against the names of all base"
        " classes, but a model that always answers their class would be right on all their own"
        " images: read their local accuracy beside base and novel."
    )


def test_a_client_of_novel_classes_only(tmp_path: Path) -> None:
    make(tmp_path, {"a/ant": 8, "a/bee": 8, "a/cow": 8, "a/dog": 8, "b/dog": 8})
    message = refusal(tmp_path, partition="folders", classes="base-novel")
    assert "clients without a training image of a class that is trained on (1): b. " in message


def test_a_base_class_without_training_images(tmp_path: Path) -> None:
    sizes = {"train/cat": 8, "train/dog": 8, "test/cat": 2, "test/dog": 2, "test/ox": 2}
    message = refusal(make(tmp_path, sizes))
    assert "classes to train on without a training image (1): ox." in message


def test_a_class_with_too_few_images(tmp_path: Path) -> None:
    make(tmp_path, {"cat": 20, "cow": 4, "dog": 20, "ox": 1})
    few, shots, test, *rest = build(tmp_path, num_shots=10).warnings
    assert few.startswith(
        "classes with fewer than 5 images where a test or validation split had to be set aside (2):"
        " cow, ox. "
    )
    assert shots.startswith(
        "classes with fewer training images than the shots asked for (2): cow (3 of 10), ox (1 of"
        " 10). All that they have are used"
    )
    assert test.startswith("classes without a test image (1): ox. ")
    assert rest == []


def test_clients_without_test_or_validation_images(tmp_path: Path) -> None:
    make(tmp_path, {"a/cat": 9, "a/dog": 9, "b/cat": 1, "b/dog": 1})
    warnings = build(tmp_path, partition="folders").warnings
    assert [warning.split(" (")[0] for warning in warnings] == [
        "classes with fewer than 5 images where a test or validation split had to be set aside",
        "clients without a test image of their own classes",
        "clients without a validation image",
    ]
    assert "b: cat, b: dog" in warnings[0]


def test_a_single_novel_class(tmp_path: Path) -> None:
    make(tmp_path, {"ant": 8, "bee": 8, "cow": 8})
    (warning,) = build(tmp_path, classes="base-novel", clients=1).warnings
    assert warning.startswith("a single novel class (1): cow. Scored among novel names alone")


def test_one_folder_too_many_is_suspected(tmp_path: Path) -> None:
    make(tmp_path, {"photos/cat": 8, "photos/dog": 8})
    (problem,) = check_dataset(load_dataset(tmp_path))
    assert str(problem) == (
        "a single folder of class folders, read as one client (1): photos. If it is no client but"
        " the data set itself, name that folder instead."
    )


def test_every_kind_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "partitions.md").read_text(encoding="utf-8")
    for name, kind in problem_kinds().items():
        assert f"| `{name}` | {kind.level} | {kind.title} |" in text
