"""Chromium, driven by Playwright, and where its screenshots are kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Locator, Page, sync_playwright

from tests.boxes import requirements
from tests.boxes.game import STATE

CHROMIUM = "/usr/bin/chromium"
BROWSER = {"chromium": "chromium"}
"""The program and its Debian package."""
SCREENSHOTS = STATE / "screenshots"
# As root, Chromium has no sandbox of its own. The others keep it from asking the internet.
_OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
_OFFLINE = ("--disable-background-networking", "--disable-component-update")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Debian's Chromium, which is installed if it is missing. Raises BoxError."""
    requirements.ensure(BROWSER)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*_OPTIONS, *_OFFLINE])
        try:
            yield browser
        finally:
            browser.close()


def keep_screenshot(page: Page, name: str) -> None:
    """Write a screenshot of the whole page to .boxes/screenshots."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{re.sub('[^a-z0-9]+', '-', name)}.png", full_page=True)


def width_of_content(document: Locator) -> tuple[int, int]:
    """Return the width that a document (its html element) needs, and the width that it has, in CSS pixels."""
    needs, has = document.evaluate("() => [document.documentElement.scrollWidth, window.innerWidth]")
    return int(needs), int(has)
