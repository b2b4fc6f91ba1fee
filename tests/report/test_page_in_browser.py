"""The page of a report as people see it: both schemes, desktop, phone and paper; no network."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from pfedmma_deploy.federated.train import train
from pfedmma_deploy.report.page import render_page
from pfedmma_deploy.report.run_report import report_runs
from tests.demo import browser
from tests.federated.conftest import one_thread, sites
from tests.methods.test_all_methods import options

__all__ = ["one_thread", "sites"]

REASON = browser.missing()
in_browser = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.fixture(scope="module")
def page_file(sites: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    run = train(options("pfedmma", sites), folder / "run").run
    file = folder / "report.html"
    file.write_text(render_page(report_runs([run])), encoding="utf-8")
    return file


@in_browser
@pytest.mark.parametrize("size", [browser.DESKTOP, browser.PHONE])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_and_follows_the_scheme(
    size: tuple[int, int], dark: bool, page_file: Path, tmp_path: Path
) -> None:
    with browser.open_page(tmp_path, size, dark=dark) as (page, outside):
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(page_file.as_uri())
        assert outside == [page_file.as_uri()] and problems == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        back = brightness(page, "backgroundColor", "body")
        assert back < 60 if dark else back == 255
        # Words in a drawing have the page's colour.
        assert brightness(page, "fill", "figure svg text") == brightness(page, "color", "body")
        tall = page.evaluate(
            "[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect())"
            ".map(r => [r.width, r.height])"
        )
        assert len(tall) >= 8
        for width, height in tall:
            assert 250 <= width <= 560 and 100 <= height <= 900
        page.emulate_media(media="print")
        assert brightness(page, "backgroundColor", "body") == 255, "paper is white"


def brightness(page: Any, style: str, place: str) -> float:
    """Mean of red, green and blue of a computed colour, 0 to 255."""
    colour = page.eval_on_selector(place, f"node => getComputedStyle(node).{style}")
    channels = [float(channel) for channel in re.findall(r"[\d.]+", colour)[:3]]
    return sum(channels) / 3


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it, of `#rrggbb`."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_by_hand() -> None:
    assert contrast("#000000", "#ffffff") == 21.0


def test_words_and_marks_stand_out_in_both_schemes() -> None:
    """WCAG 2.2: 4.5 for words (AA), 3 for what is drawn."""
    css = files("pfedmma_deploy").joinpath("assets/report/style.css").read_text("utf-8")
    schemes = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in css.split("@media")[:2]]
    for scheme in schemes:
        assert len(scheme) == 17
        for back in (scheme["paper"], scheme["card"]):
            for name, colour in scheme.items():
                if name in ("ink", "soft", "good", "bad"):
                    assert contrast(colour, back) >= 4.5, name
                elif re.fullmatch(r"c\d", name):
                    assert contrast(colour, back) >= 3, name
