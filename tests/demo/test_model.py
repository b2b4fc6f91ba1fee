"""Words for clients and classes, and typed names."""

from __future__ import annotations

import pytest

from pfedmma_deploy.demo.model import parse_names
from pfedmma_deploy.errors import ImageError, UsageError
from tests.demo.fakes import fake_model, image, with_sample


def test_what_a_class_is_to_a_client() -> None:
    model = fake_model()
    north, south = model.client("north"), model.client("south")
    kinds = [model.kind(name, north) for name in ("cat", "dog", "fire_truck", "zebra")]
    assert kinds == ["seen", "elsewhere", "novel", "typed"]
    assert model.kind("dog", south) == "seen"
    assert model.kind(" Fire TRUCK ", north) == "novel"


def test_class_sets() -> None:
    model = fake_model()
    north = model.client("north")
    assert model.names("all", north) == ("cat", "dog", "fire_truck", "owl")
    assert model.names("seen", north) == ("cat",)
    assert model.names("base", north) == ("cat", "dog")
    assert model.names("novel", north) == ("fire_truck", "owl")
    assert model.names("typed", north, "a zebra, tea pot") == ("a zebra", "tea pot")
    with pytest.raises(UsageError, match="no class set 'mine'; the class sets are all, seen, base"):
        model.names("mine", north)
    without_novel = fake_model(novel=())
    with pytest.raises(UsageError, match=r"“Novel classes” is empty; choose another class set"):
        without_novel.names("novel", without_novel.client("north"))


def test_unknown_clients_are_named() -> None:
    with pytest.raises(UsageError, match=r"no client 'nort'; did you mean 'north'\? \(clients: no"):
        fake_model().client("nort")
    with pytest.raises(UsageError, match="There is no client 'zero-shot'"):
        fake_model().client("zero-shot")


def test_typed_names() -> None:
    assert parse_names(" a  dog ,,\n a red\tcar,") == ("a dog", "a red car")
    assert parse_names("a\u202eb, c\x00d") == ("a b", "c d")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"^Type at least two class names with a comma between them, for example: a red car"),
        ("zebra", "Type at least two"),
        ("zebra, owl, Zebra", r"The class “zebra” is named twice: name each class once\."),
        (",".join(f"n{i}" for i in range(101)), r"101 class names are more than 100"),
        ("a" * 81 + ", b", r"“a{30}…” has 81 characters; 80 are allowed"),
    ],
)
def test_typed_names_that_cannot_be_used(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_names(text)


def test_only_models_of_the_sample_have_it() -> None:
    assert fake_model().sample is None and fake_model().tests == ()
    assert fake_model(provenance={"data": "my photos"}).sample is None
    # The embedded sample has ten classes, this model knows four others.
    assert fake_model(provenance={"data": "cifar10-sample"}).sample is None


def test_test_images_come_with_their_classes_in_turn() -> None:
    tests = [(0, image(0, 0)), (0, image(0, 0)), (3, image(0, 0)), (2, image(0, 0))]
    model = with_sample(fake_model(), tests)
    assert [example.label for example in model.tests] == [0, 2, 3, 0]


def test_an_image_too_thin_to_resize_is_a_sentence() -> None:
    with pytest.raises(ImageError, match=r"^This image cannot be used: 1 x 30000000 pixels is too"):
        fake_model().pixels(image(0, 0, size=1).resize((1, 30_000_000)))
