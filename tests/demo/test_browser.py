"""The page in a real browser: what a person does, sees and is told; nothing leaves the machine."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.demo import browser
from tests.demo.serving import Served

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest_plugins = ["tests.demo.fixtures"]

REASON = browser.missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.fixture(scope="module")
def page(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One page for all tests, each of which loads the demo anew."""
    with browser.open_page(tmp_path_factory.mktemp("browser")) as (opened, outside):
        problems: list[str] = []
        opened.on("pageerror", lambda error: problems.append(str(error)))
        yield opened
        assert outside == []
        assert problems == []


@pytest.fixture
def demo(page: Page, served: Served) -> Page:
    browser.open_demo(page, served.url)
    return page


@pytest.fixture(scope="module")
def manifest(served: Served) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((served.bundle / "manifest.json").read_text())
    return values


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.effect_noise((300, 200), 90).convert("RGB").save(path)
    return path


def upload(page: Page, path: Path) -> None:
    """Give the picture field a file, as a person with the file dialog does."""
    clear = page.locator("#compare-image button[aria-label=Clear]")
    if clear.count():
        clear.click()
    page.set_input_files("#compare-image input[type=file]", path)


def settled(page: Page, pattern: str, place: str = "#compare-result") -> str:
    """The text of a place once it matches."""
    page.wait_for_function(
        """([place, pattern]) =>
            new RegExp(pattern, 's').test(document.querySelector(place)?.innerText)""",
        arg=[place, pattern],
        timeout=browser.SECONDS * 1000,
    )
    return page.inner_text(place)


def test_the_page_opens_with_an_example_answered(demo: Page, manifest: dict[str, Any]) -> None:
    found = browser.tops(demo)
    assert next(iter(found)) == "zero-shot" and len(found) == 2
    text = demo.inner_text("#compare-result")
    assert re.search(r"right|wrong", text), "its true class is known"
    assert re.search(r"CPU\s+fp32|CPU\s+int8", text) and "ms for 2 models in one call" in text
    assert demo.locator("#compare-examples button").count() >= 2


def test_upload_and_read_both_labels(
    demo: Page, photo: Path, served: Served, manifest: dict[str, Any]
) -> None:
    from pfedmma_deploy.runtime import Classifier

    browser.choose(demo, "compare-classes", "All classes")
    settled(demo, f"{len(manifest['class_names'])} names: all classes")
    upload(demo, photo)
    demo.wait_for_selector(
        "#compare-result .pf-verdict:not(:has-text('right')):not(:has-text('wrong'))"
    )
    found = browser.tops(demo)
    classifier = Classifier.load(served.bundle, "cpu")
    for client, name in found.items():
        index = classifier.bundle.client_index(client)
        assert name == classifier.predict(photo, index)[0].top[0].name.replace("_", " ")
    assert demo.input_value("#compare-truth input") == "Not known"


def test_switch_the_client(demo: Page, manifest: dict[str, Any]) -> None:
    other = manifest["clients"][-1]["id"]
    browser.choose(demo, "compare-client", f"Client {other}:")
    settled(demo, f"Client {other} trained on", "#compare-card")
    demo.wait_for_selector(f"#compare-result .pf-column[data-client='{other}']")
    assert list(browser.tops(demo)) == ["zero-shot", other]
    first = manifest["clients"][1]["id"]
    browser.choose(demo, "compare-other", f"Client {first}:")
    demo.wait_for_selector(f"#compare-result .pf-column[data-client='{first}']")
    assert len(browser.tops(demo)) == 3


def test_turn_the_strength(demo: Page, manifest: dict[str, Any]) -> None:
    """Bars and the point on the curve follow; 0 is what zero-shot says, at a temperature of its own
    where the client is calibrated.
    """
    if manifest.get("strength") is None:
        assert not demo.is_visible("#compare-strength")
        return
    browser.choose(demo, "compare-classes", "All classes")
    settled(demo, f"{len(manifest['class_names'])} names: all classes")

    def bars(column: int) -> list[str]:
        place = demo.locator("#compare-result .pf-column").nth(column)
        return place.locator("li .pf-percent").all_inner_texts()

    def names(column: int) -> list[str]:
        place = demo.locator("#compare-result .pf-column").nth(column)
        return place.locator("li .pf-name").all_inner_texts()

    trained = bars(1)
    slider = demo.locator("#compare-strength input[type=range]")
    slider.focus()
    slider.press("Home")
    settled(demo, "personalized, strength 0.00")
    assert names(1) == names(0) and bars(1) != trained
    if not manifest["clients"][1].get("calibration"):
        assert bars(1) == bars(0)
    for _ in range(8):
        slider.press("ArrowRight")
    settled(demo, "personalized, strength 0.50")
    assert bars(1) not in (bars(0), trained)
    if manifest.get("history"):
        text = settled(demo, "measured at strength 0.5", "#compare-curve")
        found = manifest["history"]["clients"][demo_client(demo)]["curve"]
        point = next(one for one in found if one["strength"] == 0.5)
        assert f"Local {point['local']:.1f} %" in text
        assert demo.get_attribute("#compare-curve [data-strength]", "data-strength") == "0.50"
    # Another client starts at its own.
    other = manifest["clients"][-1]["id"]
    browser.choose(demo, "compare-client", f"Client {other}:")
    own = manifest["clients"][-1].get("default_strength", 1)
    said = "\\s" if own == 1 else f", strength {own:.2f}"
    settled(demo, f"Client {other}.*personalized{said}")
    shown = float(demo.input_value("#compare-strength input[type=number]"))
    assert shown == own


def demo_client(page: Page) -> str:
    """The client whose answers are shown."""
    return list(browser.tops(page))[1]


def test_switch_the_class_set(demo: Page, manifest: dict[str, Any]) -> None:
    names = {manifest["class_names"][label].replace("_", " ") for label in manifest["novel"]}
    browser.choose(demo, "compare-classes", "Novel classes")
    settled(demo, f"{len(names)} names: novel classes")
    assert set(browser.tops(demo).values()) <= names
    tags = demo.locator("#compare-result .pf-column .pf-tag").all_inner_texts()
    assert set(tags) == {"novel"}


def test_type_class_names(demo: Page) -> None:
    assert not demo.is_visible("#compare-typed")
    browser.choose(demo, "compare-classes", "Names I type")
    field = demo.locator("#compare-typed textarea, #compare-typed input").first
    evil = "a <b>bold</b> ${1+1} {{value}} @children name"
    field.fill(f"a zebra, a tea pot, {evil}")
    field.press("Enter")
    text = settled(demo, "a tea pot.*3 names: typed")
    assert evil in text, "shown as it was typed"
    field.fill("only one")
    field.press("Enter")
    settled(demo, "Type at least two class names with a comma between them")


def test_files_that_are_no_images(demo: Page, tmp_path: Path) -> None:
    bad = tmp_path / "holiday.png"
    bad.write_bytes(b"this is text")
    upload(demo, bad)
    settled(demo, "This file is not an image that I can read: not a JPEG, PNG, WebP or BMP image")
    demo.click("#compare-examples button >> nth=0")
    settled(demo, "right|wrong")


def test_examples_are_what_they_say(demo: Page) -> None:
    said = {
        "only personalized is right": "Only Client .* is right",
        "only zero-shot is right": "Only zero-shot is right",
        "both are right": "Both are right",
        "Both are wrong": "Both are wrong",
    }
    for button in demo.locator("#compare-examples button").all():
        caption = button.inner_text()
        button.click()
        # The verdict alone may be that of the example before: the true class arrives with the new.
        demo.wait_for_function(
            "name => document.querySelector('#compare-truth input').value === name",
            arg=caption.split("\n")[0],
            timeout=browser.SECONDS * 1000,
        )
        settled(demo, next(words for part, words in said.items() if part in caption))


def test_gallery(demo: Page, tmp_path: Path) -> None:
    demo.get_by_role("tab", name="Gallery").click()
    assert "Press “Judge these images”" in demo.inner_text("#gallery-figures")
    demo.locator("#gallery-count input[type=number]").fill("40")
    demo.click("#gallery-run")
    settled(demo, "40 images in", "#gallery-figures")
    settled(demo, "40 of 40 images, 28 shown", "#gallery-grid")
    demo.click("#gallery-more")
    settled(demo, "“All”: 40 of 40 images\\s", "#gallery-grid")
    assert demo.locator("#gallery-grid figure").count() == 40
    differ = demo.locator("#gallery-grid .pf-agree-differ").count()
    demo.get_by_label("They differ").check()
    settled(demo, f"“They differ”: {differ} of 40 images", "#gallery-grid")
    assert demo.locator("#gallery-confusion img:visible").count() == 2
    with demo.expect_download() as download:
        demo.click("#gallery-csv")
    file = tmp_path / "answers.csv"
    download.value.save_as(file)
    assert len(list(csv.reader(io.StringIO(file.read_text())))) == 41


def test_gallery_of_own_images(demo: Page, photo: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")
    demo.get_by_role("tab", name="Gallery").click()
    demo.get_by_label("My own images").check()
    demo.click("#gallery-run")
    settled(demo, "Choose some images, a zip or a folder first", "#gallery-figures")
    demo.set_input_files("#gallery-files input[type=file]", [photo, bad])
    demo.wait_for_selector("#gallery-files :text('photo')")
    demo.click("#gallery-run")
    text = settled(demo, "1 images? in", "#gallery-figures")
    assert "bad.png: This file is not an image that I can read: the file is empty" in text
    assert "True classes are not known" in text


def test_gallery_of_a_folder(
    demo: Page, manifest: dict[str, Any], photo: Path, tmp_path: Path
) -> None:
    names = manifest["class_names"][:2]
    for name in names:
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1.jpg").write_bytes(photo.read_bytes())
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    demo.get_by_role("tab", name="Gallery").click()
    demo.get_by_label("My own images").check()
    demo.set_input_files("#gallery-folder input[type=file]", tmp_path / "photos")
    settled(demo, "2 images chosen", "#gallery-folder")
    demo.click("#gallery-run")
    settled(demo, "2 images in", "#gallery-figures")
    shown = demo.locator("#gallery-grid .pf-name").all_inner_texts()
    assert shown == [name.replace("_", " ") for name in names], "classes are the folders"


def test_clients_and_about(demo: Page, manifest: dict[str, Any]) -> None:
    demo.get_by_role("tab", name="Clients").click()
    assert demo.locator("#clients-classes img:visible").count() == 1
    if manifest.get("history"):
        rows = demo.locator("#clients-accuracy .pf-row")
        assert rows.count() == len(manifest["clients"]) + 1, "heading, mean, clients"
    else:
        assert "does not say how accurate" in demo.inner_text("#clients-accuracy")
    demo.get_by_role("tab", name="About").click()
    text = demo.inner_text("#about-text")
    assert "What stands side by side" in text and "Limits" in text


def test_phone_and_dark(page: Page, served: Served) -> None:
    width, height = browser.PHONE
    page.set_viewport_size({"width": width, "height": height})
    for dark in (False, True):
        page.emulate_media(color_scheme="dark" if dark else "light")
        browser.open_demo(page, served.url)
        for name in ("Compare", "Gallery", "Clients", "About"):
            page.get_by_role("tab", name=name).click()
            wider = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert wider <= 0, f"{name} is {wider} pixels wider than the screen"
        assert page.evaluate("document.body.classList.contains('dark')") == dark
