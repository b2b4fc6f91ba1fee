"""Takes the pictures in docs/screenshots from the running demo.

`python -m tests.demo.screenshots [BUNDLE]` from the top of the checkout; the default bundle is
exports/quickstart. Needs Chromium and the package playwright.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from tests.demo import browser
from tests.demo.serving import QUICKSTART, ROOT, start

if TYPE_CHECKING:
    from playwright.sync_api import Page

FOLDER = ROOT / "docs" / "screenshots"
MOST_BYTES = 300_000
LOOKS = {
    "compare": ("desktop-light", "desktop-dark", "phone-light", "phone-dark"),
    "gallery": ("desktop-light", "phone-dark"),
    "clients": ("desktop-dark", "phone-light"),
    "about": ("desktop-light", "phone-dark"),
}
SIZES = {"desktop": browser.DESKTOP, "phone": browser.PHONE}
HEIGHT = {"desktop": 1200, "phone": 1700}
"""Pixels from the top that are kept: enough to see, small enough for a repository."""


def prepare(page: Page, tab: str, *, dark: bool) -> None:
    """Bring a tab into a state that shows something."""
    if tab != "compare":
        page.get_by_role("tab", name=tab.capitalize()).click()
    if tab == "compare" and dark:
        # An example of a novel class, to show that nothing is lost there.
        page.locator("#compare-examples button", has_text="Novel class: both").click()
        page.wait_for_selector("#compare-result:has-text('Both are right')")
    if tab == "gallery":
        page.click("#gallery-run")
        page.wait_for_selector("#gallery-grid figure", timeout=60_000)
    page.mouse.move(0, 0)
    page.wait_for_timeout(1200)


def save(data: bytes, path: Path, height: int) -> None:
    """A screenshot cut at `height`, reduced to a palette where it would be too large."""
    with Image.open(io.BytesIO(data)) as opened:
        whole = opened.convert("RGB")
    cut = whole.crop((0, 0, whole.width, min(whole.height, height)))
    cut.save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        cut.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Start the demo, take every picture, stop it."""
    problem = browser.missing()
    if problem is not None:
        raise SystemExit(problem)
    FOLDER.mkdir(parents=True, exist_ok=True)
    bundle = Path(sys.argv[1]) if len(sys.argv) > 1 else QUICKSTART
    with tempfile.TemporaryDirectory() as temporary:
        served = start(bundle, Path(temporary) / "log.txt")
        for tab, looks in LOOKS.items():
            for look in looks:
                where, _, light = look.partition("-")
                dark = light == "dark"
                folder = Path(temporary) / f"{tab}-{look}"
                with browser.open_page(folder, SIZES[where], dark=dark) as (page, outside):
                    browser.open_demo(page, served.url)
                    prepare(page, tab, dark=dark)
                    data = page.screenshot(full_page=True)
                    assert outside == [], outside
                save(data, FOLDER / f"{tab}-{look}.png", HEIGHT[where])
        served.stop()


if __name__ == "__main__":
    main()
