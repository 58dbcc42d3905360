"""Cockpit in a box: its users, and how a browser logs in and opens left4me's page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, FrameLocator, Page, expect

from tests.boxes.boxes import Box
from tests.boxes.deployed import PACKAGES

COCKPIT = (*PACKAGES, "cockpit-ws", "cockpit-system")
"""The packages in the image."""
GROUP, OPERATOR, STRANGER = "operators", "anna", "stranger"
PASSWORD = "cows-on-the-roof"
FRAME = "cockpit1:localhost/left4me"
SECONDS = 30_000  # milliseconds; a login takes one second on a quiet machine


def add_users(box: Box) -> None:
    """Create an operator and a stranger, who have passwords; the group is for the host's `operators`."""
    box.run(f"""
        groupadd {GROUP}
        useradd --create-home --shell /bin/bash --groups {GROUP} {OPERATOR}
        useradd --create-home --shell /bin/bash {STRANGER}
        printf '%s\\n' {OPERATOR}:{PASSWORD} {STRANGER}:{PASSWORD} | chpasswd
    """)


@dataclass
class Session:
    """Somebody who has logged in to a box's Cockpit; each open() is a new tab."""

    box: Box
    context: BrowserContext
    errors: list[str] = field(default_factory=list)
    """What the browser has reported about left4me's page."""

    @property
    def address(self) -> str:
        """The address of Cockpit for a browser in the box's network namespace, as through `ssh -L`.

        Not https: Debian's cockpit-tls at times leaves a request of Chromium unanswered
        (https://github.com/cockpit-project/cockpit/issues/22274).
        """
        return "http://127.0.0.1:9090"

    def tab(self) -> Page:
        """Open an empty tab."""
        page = self.context.new_page()
        page.set_default_timeout(SECONDS)
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        return page

    def _note(self, message: ConsoleMessage) -> None:
        # The others are of Cockpit's own pages.
        if message.type == "error" and "/left4me/" in f"{message.location} {message.text}":
            self.errors.append(message.text)

    def log_in(self, user: str) -> None:
        """Log in; the tab stays open, because Cockpit ends a session that has none."""
        page = self.tab()
        page.goto(f"{self.address}/left4me")
        page.fill("#login-user-input", user)
        page.fill("#login-password-input", PASSWORD)
        page.click("#login-button")
        expect(page.locator(f'iframe[name="{FRAME}"]')).to_be_attached()

    def open(self, route: str) -> tuple[Page, FrameLocator]:
        """Open left4me's page in a new tab; return the tab, and the frame with the page."""
        page = self.tab()
        page.goto(f"{self.address}/left4me#/{route}")
        return page, page.frame_locator(f'iframe[name="{FRAME}"]')


@contextmanager
def logged_in(browser: Browser, box: Box, user: str, **context: Any) -> Iterator[Session]:
    """Log in as a user of the box; fail at the end if the browser has reported an error about the page."""
    with browser.new_context(viewport={"width": 1280, "height": 900}, **context) as opened:
        session = Session(box, opened)
        session.log_in(user)
        yield session
        assert session.errors == []
