"""Chromium, driven by Playwright, and where its screenshots are kept."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, sync_playwright

from tests.boxes import requirements
from tests.boxes.boxes import Box
from tests.boxes.game import STATE

CHROMIUM = "/usr/bin/chromium"
BROWSER = {"chromium": "chromium"}
"""The program and its Debian package."""
SCREENSHOTS = STATE / "screenshots"
# As root, Chromium has no sandbox of its own. The others keep it from asking the internet.
_OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
_OFFLINE = ("--disable-background-networking", "--disable-component-update")


@contextmanager
def chromium(box: Box | None = None) -> Iterator[Browser]:
    """Start Debian's Chromium in the network namespace of a box, or without a network. Raises BoxError.

    It is installed if it is missing. In this machine's own namespace it ends all connections with ERR_NETWORK_CHANGED
    whenever a box is started or stopped.
    """
    requirements.ensure(BROWSER)
    where = ["nsenter", f"--net=/proc/{box.leader}/ns/net"] if box else ["unshare", "--net"]
    with tempfile.TemporaryDirectory(prefix="left4me-browser-") as folder, sync_playwright() as playwright:
        program = Path(folder) / "chromium"
        program.write_text(f'#!/bin/sh\nexec {shlex.join([*where, CHROMIUM])} "$@"\n', encoding="utf-8")
        program.chmod(0o700)
        browser = playwright.chromium.launch(executable_path=program, args=[*_OPTIONS, *_OFFLINE])
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
