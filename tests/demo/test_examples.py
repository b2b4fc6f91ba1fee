"""Examples are the first test images that meet each rule."""

from __future__ import annotations

from pfedmma_deploy.demo.examples import RULES, find_examples
from tests.demo.fakes import fake_model, image, with_sample

CAT, DOG, TRUCK, OWL = range(4)

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
