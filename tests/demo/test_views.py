"""Everything is said in words, and nothing from outside is taken for HTML."""

from __future__ import annotations

import io
from typing import cast

import numpy as np
import pytest
from PIL import Image

from pfedmma_deploy.demo import views
from pfedmma_deploy.demo.compare import compare
from pfedmma_deploy.demo.gallery import find_examples
from pfedmma_deploy.demo.views import confusion_picture, counts_picture
from pfedmma_deploy.runtime.certainty import Verdict
from tests.demo.fakes import FakeClassifier, fake_model, history, image, with_sample

CAT, DOG, TRUCK, OWL = range(4)


@pytest.mark.parametrize(
    ("zero_shot", "north", "truth", "said"),
    [
        (CAT, CAT, None, "Both say <b>cat</b>"),
        (DOG, CAT, None, "They differ: zero-shot says <b>dog</b>, Client north says <b>cat</b>"),
        (DOG, CAT, "cat", "Only Client north is right: <b>cat</b>, not dog"),
        (DOG, CAT, "dog", "Only zero-shot is right: <b>dog</b>, not cat"),
        (TRUCK, TRUCK, "fire_truck", "Both are right: <b>fire truck</b>"),
        (DOG, CAT, "owl", "Both are wrong: dog and cat, not <b>owl</b>"),
        (DOG, DOG, "owl", "Both are wrong: dog, not <b>owl</b>"),
    ],
)
def test_the_verdict(zero_shot: int, north: int, truth: str | None, said: str) -> None:
    html = views.comparison(compare(fake_model(), image(zero_shot, north), "north", truth=truth))
    assert said in html
    assert (">=<" in html) == (zero_shot == north)


def test_colour_has_words() -> None:
    html = views.comparison(compare(fake_model(), image(DOG, CAT), "north"))
    for words in ("seen here", "seen elsewhere", "novel", "as it was before training", "CPU"):
        assert words in html
    assert "ms for 2 models in one call" in html and "fp32" in html


def test_unknown_is_said_with_its_score() -> None:
    model = fake_model()
    fake = cast("FakeClassifier", model.classifier)
    fake.verdict = Verdict(known=-1.25, threshold=0.5)
    found = compare(model, image(DOG, CAT), "north")
    assert (found.zero_shot.is_unknown, found.personalized.is_unknown) == (False, True)
    html = views.comparison(found)
    assert "<b>unknown</b>: it scores -1.2, and of" in html
    assert html.count("pf-unknown") == 1
    fake.verdict = Verdict(known=1.25, threshold=0.5)
    html = views.comparison(compare(model, image(DOG, CAT), "north"))
    assert "known: it scores 1.2, unknown below 0.5" in html and "pf-unknown" not in html


def test_names_are_never_html() -> None:
    evil = "<img src=x onerror=alert(1)>"
    found = compare(
        fake_model(), image(0, 1), "north", class_set="typed", typed=f"{evil}, a & b", truth=evil
    )
    html = views.comparison(found)
    assert "<img" not in html and "&lt;img src=x onerror=alert(1)&gt;" in html
    assert "<script" not in views.render("problem", "<script>") + views.render("hint", "<script>")


def test_the_strength_is_said_where_it_is_not_1() -> None:
    for strength, said in ((0.5, "personalized, strength 0.50</p>"), (None, "personalized</p>")):
        found = compare(fake_model(), image(DOG, CAT), "north", strength=strength)
        assert said in views.comparison(found)


def test_the_curve_by_hand() -> None:
    """Local 70 to 90, base 50 to 40, novel 80 to 80.5: the drawing goes from 40 to 90."""
    model = fake_model(history=history(north=(70.0, 80.0, 90.0, 80.5)))
    html = views.strength_curve(model, "north", 0.5)
    assert ">90 %</text>" in html and ">40 %</text>" in html
    # Half of the way is a third of the width of 360; 70 is two fifths below 90, of 90.
    assert 'points="0.0,36.0 240.0,0.0 "' in html
    assert '<circle class="pf-point" cx="120.0" cy="18.0" r="5"/>' in html
    assert "0: local 70.0, base 50.0, novel 80.0; 1: local 90.0, base 40.0, novel 80.5;" in html
    assert "measured at strength 0<" in html and "Local 70.0 %" in html
    assert "Local 90.0 %" in views.strength_curve(model, "north", 0.75)


def test_without_a_curve() -> None:
    assert "does not say how accurate its clients are at other strengths" in views.strength_curve(
        fake_model(), "north", 1
    )
    assert views.strength_curve(fake_model(strength=None), "north", 1) == ""


def test_client_card() -> None:
    model = fake_model(history=history(north=(70.0, 80.0, 90.0, 80.5)))
    card = views.client_card(model, "north")
    assert "Client north trained on 4 images of 1 class:" in card
    assert "<b>90 %</b> on its own test images<small>zero-shot 70 %</small>" in card
    assert "trained on 2 classes" in views.client_card(model, "south")


def test_examples_or_a_hint() -> None:
    model = with_sample(fake_model(), [(CAT, image(DOG, CAT))])
    shelf = views.render("examples", find_examples(model, "north"))
    assert 'data-example="0"' in shelf and "Seen class: only personalized is right" in shelf
    assert "drop a picture of your own" in views.render("examples", [])


def test_clients() -> None:
    model = fake_model(
        history=history(north=(70.0, 80.0, 75.0, 80.9), south=(70.0, 80.0, 90.0, 79.1))
    )
    text = views.accuracies(model)
    assert "over 2 clients" in text
    # Means of local: 70.0 and 82.5.
    assert ">70.0<" in text and ">82.5<" in text and "+12.5" in text
    assert "&minus;10.0" in text, "base falls from 50 to 40"
    assert "2.5 % of the model" in views.traffic(model) and "600 <i>bytes" in views.traffic(model)
    assert "Novel: fire truck, owl." in views.classes(model)


def test_clients_of_whom_nothing_is_known_have_hints() -> None:
    model = fake_model()
    assert views.traffic(model) == ""
    assert "Export it from a finished run with `pfedmma export`" in views.accuracies(model)
    assert "the bundle has no counts" in views.classes(model)


def test_about() -> None:
    model = fake_model(backbone={"name": "pfedmma-tiny", "pretrained": "embedded"})
    text = views.about(model)
    for words in (
        "`pfedmma-tiny` (embedded)",
        "same answer on 100.0 %",
        "small distilled",
        "[class",
    ):
        assert words in text
    assert "small distilled" not in views.about(fake_model())


def test_pictures_for_light_and_dark_pages() -> None:
    drawn = confusion_picture(np.array([[3, 1], [0, 2]]), ["cat", "a $ dog_"], "Client 3")
    assert drawn.description == "Client 3: 5 of 6 right, 2 classes"
    corners = []
    for data, back in ((drawn.light, views.LIGHT.back), (drawn.dark, views.DARK.back)):
        with Image.open(io.BytesIO(data)) as opened:
            assert opened.width > 500
            corners.append(opened.convert("RGB").getpixel((1, 1)))
        assert corners[-1] == tuple(bytes.fromhex(back[1:]))
    html = views.render("picture", drawn)
    assert html.count("data:image/png;base64,") == 2 and "5 of 6 right" in html


@pytest.mark.parametrize("count", [1, 80])
def test_pictures_of_any_number_of_classes(count: int) -> None:
    names = [f"class {i} with a long name" for i in range(count)]
    counts = np.eye(count, dtype=np.int64)
    with Image.open(io.BytesIO(confusion_picture(counts, names, "t").light)) as opened:
        assert max(opened.size) < 5000
    drawn = counts_picture(np.zeros((1, count), np.int64), ["Client 0"], names, [0])
    assert drawn.light.startswith(b"\x89PNG")
