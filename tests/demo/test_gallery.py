"""Many images: figures, filters, confusion and examples that can be counted by hand."""

from __future__ import annotations

import csv
import io

import pytest
from PIL import Image

from pfedmma_deploy.demo.gallery import RULES, Gallery, find_examples, judge
from pfedmma_deploy.demo.uploads import Item
from pfedmma_deploy.demo.views import confusions, figures, grid
from pfedmma_deploy.errors import DataError, ImageError, UsageError
from tests.demo.fakes import calls, fake_model, image, with_sample

CAT, DOG, TRUCK, OWL = range(4)


def item(name: str, label: int | None, zero_shot: int, north: int) -> Item:
    return Item(name, label, lambda: image(zero_shot, north))


def broken(name: str) -> Item:
    def read() -> Image.Image:
        raise ImageError("This file is not an image that I can read: the file is empty.")

    return Item(name, CAT, read)


ITEMS = [
    item("a", CAT, zero_shot=DOG, north=CAT),  # gained, seen
    item("b", CAT, zero_shot=CAT, north=CAT),  # both right, seen
    item("c", DOG, zero_shot=DOG, north=CAT),  # lost, elsewhere
    item("d", OWL, zero_shot=OWL, north=OWL),  # both right, novel
    item("e", TRUCK, zero_shot=OWL, north=OWL),  # both wrong, novel
    item("=f", None, zero_shot=TRUCK, north=CAT),  # not known
]


@pytest.fixture
def judged() -> Gallery:
    return judge(fake_model(), [*ITEMS, broken("g")], "north", remarks=["said"])


def test_figures(judged: Gallery) -> None:
    assert judged.figures() == {
        "seen": {"images": 2, "zero_shot": 50.0, "personalized": 100.0},
        "elsewhere": {"images": 1, "zero_shot": 100.0, "personalized": 0.0},
        "novel": {"images": 2, "zero_shot": 50.0, "personalized": 50.0},
        "all": {"images": 5, "zero_shot": 60.0, "personalized": 60.0},
    }


@pytest.mark.parametrize(
    ("chosen", "names"),
    [("all", "abcde=f"), ("differ", "ac=f"), ("gained", "a"), ("lost", "c"), ("wrong", "e")],
)
def test_filters(chosen: str, names: str, judged: Gallery) -> None:
    assert "".join(row.name for row in judged.choose(chosen)) == names
    with pytest.raises(UsageError, match="no filter 'best'; there are all, differ, gained"):
        judged.choose("best")


def test_confusion(judged: Gallery) -> None:
    counts, names = judged.confusion("personalized")
    assert names == ["cat", "dog", "fire_truck", "owl"]
    assert counts.tolist() == [[2, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]]
    counts, _ = judged.confusion("zero_shot")
    assert counts.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]]


def test_images_that_cannot_be_read_are_listed(judged: Gallery) -> None:
    assert [(entry.path, entry.reason[:30]) for entry in judged.skipped] == [
        ("g", "This file is not an image that")
    ]
    with pytest.raises(DataError, match=r"None of the 1 images can be read\. g: This file is not"):
        judge(fake_model(), [broken("g")], "north")


def test_names_to_choose_from() -> None:
    # As measured: a picture of an owl is never taken for a cat, its names are the novel ones.
    owl = [item("x", OWL, zero_shot=CAT, north=OWL)]
    assert judge(fake_model(), owl, "north").rows[0].zero_shot in {"fire_truck", "owl"}
    assert judge(fake_model(), owl, "north", names="all").rows[0].zero_shot == "cat"
    among_base = judge(fake_model(), owl, "north", names="base")
    assert among_base.figures() == {}, "no image of a base class: nothing can be right"
    with pytest.raises(UsageError, match="no set of names 'best'; there are measured, all, seen"):
        judge(fake_model(), owl, "north", names="best")


def test_both_models_share_each_call_and_progress_is_told() -> None:
    model, told = fake_model(), list[tuple[int, int]]()
    judge(model, ITEMS * 6, "south", progress=lambda *step: told.append(step))
    assert [call["images"] for call in calls(model)] == [32, 32, 8]
    assert calls(model)[0]["client"] == [0, 2] * 16
    assert told == [(16, 36), (32, 36), (36, 36)]


def test_csv_is_complete_and_starts_no_formula(judged: Gallery) -> None:
    rows = list(csv.DictReader(io.StringIO(judged.csv())))
    assert len(rows) == 6
    assert rows[0] == {
        "image": "a",
        "true_class": "cat",
        "to_this_client": "seen",
        "zero_shot": "dog",
        # Among the base names: 0.6 dog and 0.05 cat.
        "zero_shot_probability": "0.9231",
        "personalized": "cat",
        "personalized_probability": "0.6667",
        "agree": "no",
    }
    assert rows[5]["image"] == "'=f" and rows[5]["true_class"] == ""


def test_views(judged: Gallery) -> None:
    text = figures(judged)
    assert "Seen here" in text and "+50.0 points" in text and "1 image was left out" in text
    html, has_more = grid(judged, "all", 4)
    assert html.count("<figure") == 4 and has_more and "6 of 6 images, 4 shown" in html
    html, has_more = grid(judged, "lost", 4)
    assert html.count("<figure") == 1 and not has_more and "they differ" in html
    nothing = judge(fake_model(), ITEMS[1:2], "north")
    assert "choose another filter" in grid(nothing, "wrong", 4)[0]
    assert confusions(judged).count("<img") == 4
    unknown = judge(fake_model(), ITEMS[5:], "north")
    assert "needs images whose true class is known" in confusions(unknown)


TESTS = [
    (CAT, image(CAT, CAT)),  # 0: seen, both right
    (CAT, image(DOG, CAT)),  # 1: seen, only personalized right
    (CAT, image(DOG, CAT)),  # 2: the same again
    (DOG, image(DOG, CAT)),  # 3: neither seen nor novel
    (DOG, image(CAT, CAT)),  # 4: both wrong
    (OWL, image(OWL, TRUCK)),  # 5: novel, only zero-shot right
    (OWL, image(OWL, OWL)),  # 6: novel, both right
]


def test_the_first_image_that_meets_each_rule() -> None:
    found = find_examples(with_sample(fake_model(), TESTS), "north")
    assert [(one.caption, one.name, one.truth, one.class_set) for one in found] == [
        ("Seen class: only personalized is right", "1.png", "cat", "base"),
        ("Seen class: both are right", "0.png", "cat", "base"),
        ("Novel class: both are right", "6.png", "owl", "novel"),
        ("Novel class: only zero-shot is right", "5.png", "owl", "novel"),
        ("Both are wrong", "4.png", "dog", "base"),
    ]
    assert len(RULES) == 6, "nothing here meets the sixth"


def test_models_without_a_sample_have_none() -> None:
    assert find_examples(fake_model(), "north") == []
