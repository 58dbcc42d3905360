"""`python -m bench.page [DEBIAN]`: how soon the page can be used, and what it costs a host while nothing happens.

A box with Cockpit and 2 servers, then 40; the browser runs on the same machine. Each row has the milliseconds from the
click on "Log in" and from a reload until the table of servers can be used, and which part of one core the box takes,
in percent, without the page and with it.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect

from tests.boxes import boxes as machines
from tests.boxes.boxes import Box
from tests.boxes.game import build
from tests.integration.harness import deploy, wait_for_server, write_inventory
from tests.page.browser import chromium
from tests.page.login import COCKPIT, FRAME, GROUP, OPERATOR, PASSWORD, Session, add_users

TIMES = 7
SECONDS = 60.0
COUNTS = (2, 40)


def usable(page: Page) -> None:
    """Wait until the table shows a server, whose link can be clicked."""
    table = page.frame_locator(f'iframe[name="{FRAME}"]').get_by_role("table", name="Servers of this host")
    table.get_by_role("link").first.click(trial=True, timeout=60_000)


def after_login(session: Session) -> float:
    """Return the milliseconds from the click that logs in."""
    session.context.clear_cookies()
    page = session.tab()
    page.goto(f"{session.address}/left4me#/servers")
    page.fill("#login-user-input", OPERATOR)
    page.fill("#login-password-input", PASSWORD)
    begin = time.monotonic()
    page.click("#login-button")
    usable(page)
    milliseconds = (time.monotonic() - begin) * 1000
    page.close()
    return milliseconds


def after_reload(page: Page) -> float:
    begin = time.monotonic()
    page.reload()
    usable(page)
    return (time.monotonic() - begin) * 1000


def cpu(box: Box) -> float:
    """Return which part of one core a box takes over SECONDS, in percent."""
    look = "awk '/^usage_usec/ { print $2 }' /sys/fs/cgroup/cpu.stat"
    before, after = map(int, box.run(f"{look}; sleep {SECONDS}; {look}", timeout=SECONDS + 60).stdout.split())
    return (after - before) / SECONDS / 1e4


def row(box: Box, count: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        servers: dict[str, dict[str, object]] = {str(number): {"memory_max": "100M"} for number in range(3, 3 + count)}
        data: dict[str, Any] = {
            "operators": GROUP,
            "web": {"listen": "127.0.0.1:9090"},
            "servers": servers,
            "memory_max": "infinity",
        }
        deploy(write_inventory(Path(folder) / "inventory", [box], **data))
    for number in range(count):
        wait_for_server(box, 27015 + number)
    quiet = cpu(box)
    with chromium(box) as browser, browser.new_context() as context:
        session = Session(box, context)
        logins = [after_login(session) for _ in range(TIMES)]
        context.clear_cookies()
        session.log_in(OPERATOR)
        page, frame = session.open("servers")
        usable(page)
        reloads = [after_reload(page) for _ in range(TIMES)]
        expect(frame.get_by_text("No problems found.")).to_be_visible(timeout=60_000)  # it looks for them once
        watched = cpu(box)
    times = f"{statistics.median(logins):9.0f} {statistics.median(reloads):9.0f}"
    return f"{count:7} {times} {quiet:11.2f} {watched:10.2f} {watched - quiet:10.2f}"


def main(debian: int) -> None:
    build()
    name = f"bench-page-{debian}"
    [box] = machines.up([name], debian, COCKPIT)
    try:
        add_users(box)
        print(f"{'servers':>7} {'login/ms':>9} {'reload/ms':>9} {'without/%':>11} {'with/%':>10} {'page/%':>10}")
        for count in COUNTS:
            print(row(box, count), flush=True)
    finally:
        machines.down([name])


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 13)
