"""One image, several models: one call, names chosen from, agreement, truth."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from pfedmma_deploy.demo.compare import among, compare
from pfedmma_deploy.errors import ImageError, UsageError
from pfedmma_deploy.runtime import ClassScore
from tests.demo.fakes import calls, fake_model, image


def test_scores_of_some_names_add_up_to_one_again() -> None:
    scores = [ClassScore("a", 0.5), ClassScore("b", 0.3), ClassScore("c", 0.2)]
    kept = among(scores, {"a", "b"})
    assert [(score.name, round(score.probability, 6)) for score in kept] == [
        ("a", 0.625),
        ("b", 0.375),
    ]
    # So unlikely that nothing is left: no division by zero.
    assert among([ClassScore("a", 1.0), ClassScore("b", 0.0)], {"b"})[0].probability == 1.0


def test_both_models_answer_in_one_call() -> None:
    model = fake_model()
    found = compare(model, image(zero_shot=1, north=0), "north")
    assert calls(model) == [
        {"images": 2, "client": [0, 1], "classes": None, "strength": [None, None]}
    ]
    assert [one.client for one in found.models] == ["zero-shot", "north"]
    assert [(a.name, round(a.probability, 3), a.kind) for a in found.zero_shot.top] == [
        ("dog", 0.6, "elsewhere"),
        ("fire_truck", 0.3, "novel"),
        ("cat", 0.05, "seen"),
        ("owl", 0.05, "novel"),
    ]
    assert found.personalized.top[0].name == "cat"
    assert not found.agree and found.zero_shot.is_right is None
    assert (found.device, found.precision, found.names) == ("cpu", "fp32", 4)
    assert found.milliseconds > 0
    assert json.loads(json.dumps(asdict(found)))["models"][1]["top"][0]["kind"] == "seen"


def test_the_strength_is_that_of_clients_alone() -> None:
    model = fake_model()
    found = compare(model, image(1, 0, 2), "north", other="south", strength=0.5)
    assert calls(model)[0]["strength"] == [None, 0.5, 0.5]
    assert [one.strength for one in found.models] == [1.0, 0.5, 0.5]


def test_the_true_class_judges_both() -> None:
    found = compare(fake_model(), image(1, 0), "north", truth="Cat")
    assert found.truth == "cat"
    assert (found.zero_shot.is_right, found.personalized.is_right) == (False, True)


def test_a_class_set_renormalises() -> None:
    # Zero-shot: owl 0.6, cat 0.3, dog 0.05, fire_truck 0.05; among base: cat 6/7, dog 1/7.
    found = compare(fake_model(), image(3, 3), "north", class_set="base", truth="owl")
    top = found.zero_shot.top
    assert [(a.name, round(a.probability, 4)) for a in top] == [("cat", 0.8571), ("dog", 0.1429)]
    assert found.agree and found.names == 2
    assert found.personalized.is_right is None, "owl is none of the base names"


def test_another_client_stands_beside_them_with_its_own_view() -> None:
    model = fake_model()
    found = compare(model, image(0, 0, 1), "north", other="south")
    assert calls(model)[0]["client"] == [0, 1, 2]
    # North has not seen dogs, south has.
    assert found.models[2].top[0].name == "dog" and found.models[2].top[0].kind == "seen"
    assert len(compare(model, image(0, 0), "north", other="north").models) == 2


def test_typed_names_go_to_the_text_tower_and_known_ones_do_not() -> None:
    model = fake_model()
    found = compare(model, image(1, 1), "north", class_set="typed", typed="a zebra, Dog, tea pot")
    assert calls(model)[0]["classes"] == ("a zebra", "Dog", "tea pot")
    assert [(a.name, a.kind) for a in found.personalized.top][:2] == [
        ("Dog", "elsewhere"),
        ("tea pot", "typed"),
    ]
    assert compare(
        model, image(0, 0), "north", class_set="typed", typed="x, y", truth="x"
    ).personalized.is_right


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"client": "east"}, "There is no client 'east'"),
        ({"other": "east"}, "There is no client 'east'"),
        ({"class_set": "typed"}, "Type at least two class names"),
        ({"class_set": "best"}, "There is no class set 'best'"),
        ({"truth": "zebra"}, r"true class 'zebra' is none of the model's classes \(cat, dog"),
    ],
)
def test_mistakes(options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compare(fake_model(), image(0, 0), **{"client": "north", **options})


def test_files_are_read_and_remarked_on(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    image(2, 2, size=9).save(buffer, "PNG")
    found = compare(fake_model(), buffer.getvalue(), "north")
    assert found.personalized.top[0].name == "fire_truck"
    assert found.remarks == ("It is tiny (9 x 9 pixels): expect little.",)
    (tmp_path / "x.png").write_bytes(b"GIF89a")
    with pytest.raises(ImageError, match=r"not an image that I can read: .* a GIF image"):
        compare(fake_model(), tmp_path / "x.png", "north")
