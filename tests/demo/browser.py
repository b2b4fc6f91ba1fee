"""A real Chromium, headless; nothing that it does may leave this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP, PHONE = (1280, 860), (390, 844)
SECONDS = 90
"""That any step may take, also on a busy machine."""
LOCAL = ("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:", "about:")


def missing() -> str | None:
    """Why no browser can be started here, with what to install; None where one can."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "NO BROWSER TESTS: the Python package playwright is missing (pip install playwright)"
    if chromium() is None:
        return (
            "NO BROWSER TESTS: no Chromium was found; install it (apt-get install chromium), or "
            "name one in the environment variable CHROMIUM"
        )
    return None


def chromium() -> str | None:
    """Path of a Chromium."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@contextmanager
def open_page(
    folder: Path, size: tuple[int, int] = DESKTOP, *, dark: bool = False
) -> Iterator[tuple[Page, list[str]]]:
    """A page in a fresh browser, and the addresses outside this machine that it asked for.

    Args:
        folder: empty, for the browser's own files.
        size: width and height in pixels.
        dark: whether the system says that it prefers dark pages.
    """
    from playwright.sync_api import sync_playwright

    outside: list[str] = []

    def note(address: str) -> None:
        if not address.startswith(LOCAL):
            outside.append(address)

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(folder),
            executable_path=chromium(),
            args=FLAGS,
            headless=True,
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            accept_downloads=True,
        )
        context.set_default_timeout(SECONDS * 1000)
        context.on("request", lambda request: note(request.url))
        page = context.pages[0] if context.pages else context.new_page()
        page.on("websocket", lambda socket: note(socket.url))
        yield page, outside
        context.close()


def open_demo(page: Page, url: str) -> None:
    """Load the demo until its first answer stands there."""
    page.goto(url)
    page.wait_for_selector("#compare-result .pf-result", timeout=SECONDS * 1000)


def choose(page: Page, field: str, label: str) -> None:
    """Pick the entry of a dropdown that starts with `label`."""
    page.click(f"#{field} input")
    page.locator(f"#{field} [role=option]", has_text=label).first.click()


def tops(page: Page) -> dict[str, str]:
    """The first answer of every column, by client."""
    columns = page.locator("#compare-result .pf-column")
    return {
        str(column.get_attribute("data-client")): column.locator(".pf-name").first.inner_text()
        for column in columns.all()
    }
