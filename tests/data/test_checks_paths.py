"""Class names and paths: what they give away before an image is opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from PIL import Image

from pfedmma_deploy.data.class_names import is_id
from pfedmma_deploy.data.dataset_checks import check_dataset, check_order
from pfedmma_deploy.data.datasets import load_dataset
from pfedmma_deploy.types import Dataset, Example, Problem, Skipped


@dataclass(eq=False)
class Listed(Dataset):
    class_names: tuple[str, ...]
    examples: tuple[Example, ...]
    name: str = "listed"
    skipped: tuple[Skipped, ...] = ()

    def open_image(self, example: Example) -> Image.Image:
        raise AssertionError("the checks of paths open no image")


def listed(names: tuple[str, ...], *pairs: tuple[str, str]) -> Listed:
    """Examples from (key, class name)."""
    return Listed(names, tuple(Example(key, names.index(name), "train") for key, name in pairs))


def kinds(dataset: Any) -> dict[str, Problem]:
    return {problem.kind: problem for problem in check_dataset(dataset)}


@pytest.mark.parametrize(
    "name",
    ["0", "17", "n01440764", "N01440764", "class_3", "class 3", "Label-12", "id7", "m 0k4j",
     "9f8a2c1b", "550e8400-e29b-41d4-a716-446655440000"],
)  # fmt: skip
def test_names_that_are_ids(name: str) -> None:
    assert is_id(name)


@pytest.mark.parametrize(
    "name",
    ["cat", "747-200", "C-130", "A300B4", "DC-3", "F-16A/B", "2012 Tesla Model S Sedan", "Type A",
     "class of 2012", "decade", "facade", "beaded", "deadbeef", "idea", "Audi A5", "water lily"],
)  # fmt: skip
def test_names_that_are_names(name: str) -> None:
    assert not is_id(name)


def test_ids_are_an_error_with_advice() -> None:
    problem = kinds(listed(("cat", "class_1"), ("a.png", "cat")))["id-names"]
    assert (problem.level, problem.count, problem.examples) == ("error", 1, ("'class_1'",))
    assert "give real names in classes.txt" in problem.advice


def test_names_without_an_order_are_refused() -> None:
    # Defect 3 of public code: prompts in the order of a set change with the hash seed.
    data = listed(("cat", "dog"), ("a.png", "cat"))
    data.class_names = {"cat", "dog"}  # type: ignore[assignment]  # the defect
    problem = kinds(data)["unordered-classes"]
    assert (problem.level, problem.examples) == ("fatal", ("a set of 2",))


@pytest.mark.parametrize("names", [("ant", "bee", "cow"), ("Ant", "bee", "Cow"), ("Zoo", "ant")])
def test_sorted_names(names: tuple[str, ...]) -> None:
    assert check_order(Listed(names, ())) == []


def test_names_out_of_order() -> None:
    data = Listed(("cow", "ant", "bee"), ())
    (problem,) = check_order(data)
    assert (problem.level, problem.examples) == ("warning", ("'cow' before 'ant'",))
    data.has_published_order = True  # the order of the few-shot papers is nobody's mistake
    assert check_order(data) == []


def test_an_index_map_applied_to_labels_but_not_to_paths() -> None:
    # Defect 2 of public code: labels shifted by one class against the images.
    names = ("ant", "bee", "cow")
    pairs = [(f"{names[i]}/{n}.png", names[(i + 1) % 3]) for i in range(3) for n in range(4)]
    problem = kinds(listed(names, *pairs))["shifted-labels"]
    assert (problem.level, problem.count) == ("fatal", 12)
    assert problem.examples[0] == "ant/0.png (labelled 'bee')"


def test_two_classes_exchanged_among_many() -> None:
    names = tuple(f"{letter}x" for letter in "abcdefghij")
    other = {"ax": "bx", "bx": "ax"}
    pairs = [(f"{name}/{n}.png", other.get(name, name)) for name in names for n in range(3)]
    assert kinds(listed(names, *pairs))["shifted-labels"].count == 6


def test_single_images_against_their_folder() -> None:
    names = ("ant", "bee")
    pairs = [(f"site/{name}/{n}.png", name) for name in names for n in range(10)]
    pairs += [("site/ant/wrong.png", "bee"), ("site/bee/sub/ok.png", "bee"), ("loose.png", "ant")]
    problem = kinds(listed(names, *pairs))["label-against-folder"]
    assert (problem.level, problem.count) == ("error", 1)
    assert problem.examples == ("site/ant/wrong.png (labelled 'bee')",)


def test_folders_named_by_ids() -> None:
    names = ("ant", "bee")
    pairs = [(f"n{code}/{n}.png", name) for code, name in ((1, "ant"), (2, "bee")) for n in "abcde"]
    assert kinds(listed(names, *pairs)) == {}
    found = kinds(listed(names, *pairs, ("n1/odd.png", "bee")))
    assert found["label-against-folder"].examples == ("n1/odd.png (labelled 'bee')",)


def test_folders_that_say_nothing() -> None:
    names = ("ant", "bee")
    assert kinds(listed(names, *((f"images/{n}.png", names[n % 2]) for n in range(10)))) == {}
    assert kinds(listed(names, *((f"{n}.png", names[n % 2]) for n in range(10)))) == {}
    mixed = [(f"batch{n % 5}/{n}.png", names[n % 2]) for n in range(20)]
    assert kinds(listed(names, *mixed)) == {}


def test_sites_and_looks_that_are_called_like_a_class() -> None:
    names = ("art", "bee")
    data = Listed(
        names,
        (
            Example("art/bee/0.png", 1, "train", domain="art"),
            Example("art/art/0.png", 0, "train", domain="art"),
            Example("bee/art/0.png", 0, "train", client="bee"),
        ),
    )
    assert kinds(data) == {}


@pytest.mark.parametrize("name", ["cifar10-sample", "domains-sample"])
def test_nothing_is_wrong_with_the_samples(name: str) -> None:
    data = load_dataset(name)
    assert [*check_dataset(data), *check_order(data)] == []
