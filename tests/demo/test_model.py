"""Words for clients and classes, typed names, and which client is shown first."""

from __future__ import annotations

import json

import pytest

from pfedmma_deploy.demo.model import (
    client_rows,
    clients_dict,
    first_client,
    image_counts,
    parse_names,
)
from pfedmma_deploy.errors import ImageError, UsageError
from tests.demo.fakes import fake_model, history, image, with_sample


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


# local and novel of zero-shot, local and novel of the client's own model
STAYS = (70.0, 80.0, 75.0, 80.9)
GAINS_MORE = (70.0, 80.0, 90.0, 79.1)
LOSES_NOVEL = (70.0, 80.0, 99.0, 78.9)


@pytest.mark.parametrize(
    ("north", "south", "first"),
    [
        (STAYS, GAINS_MORE, "south"),
        (STAYS, LOSES_NOVEL, "north"),
        # Nobody stays within a point: +29 - 1.1 against +30 - 10.
        (LOSES_NOVEL, (70.0, 80.0, 100.0, 70.0), "north"),
        ((70.0, 80.0, 70.0, 60.0), LOSES_NOVEL, "south"),
    ],
)
def test_the_first_client(north: tuple[float, ...], south: tuple[float, ...], first: str) -> None:
    model = fake_model(history=history(north=north, south=south))  # type: ignore[arg-type]
    assert first_client(model) == first


def test_without_figures_the_bundles_first_comes_first() -> None:
    assert first_client(fake_model()) == "north"
    # South joined later: nothing is known about it.
    assert first_client(fake_model(history=history(north=LOSES_NOVEL))) == "north"


def test_rows_and_counts() -> None:
    model = fake_model(history=history(north=STAYS, south=GAINS_MORE))
    north, south = client_rows(model)
    assert (north.seen, north.images) == (("cat",), 4)
    assert south.personalized is not None and south.personalized.local == 90.0
    counts, known = image_counts(model)
    assert known and counts.tolist() == [[3, 1, 0, 0], [3, 1, 0, 0]]
    counts, known = image_counts(fake_model())
    assert not known and counts.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]]


def test_clients_as_json() -> None:
    values = clients_dict(fake_model(history=history(north=STAYS)))
    assert values["shown_first"] == "north" and values["bytes_per_client_round"] == 150
    figures = {"local": 75.0, "base": 40.0, "novel": 80.9, "all": None}
    assert values["clients"][0]["personalized"] == figures
    assert values["clients"][1]["zero_shot"] is None
    json.dumps(values)
    assert clients_dict(fake_model())["bytes_total"] is None
