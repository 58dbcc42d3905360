"""`l4d2ctl status --json --follow`: the state of a host, again at each change, without the cost of polling."""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from left4me_host import game, jobs, layout, status

EVERY = 10.0
"""Seconds after which a line comes even without a change; players come and go unseen until then."""
LOOK = 1.0
"""Seconds between two looks for changes."""
JOBS = 20
"""The latest jobs in a line."""
_CHANGED = (layout.JOBS, layout.RUN, layout.HELD)
"""Directories that change with each job, mount, start, stop or hold."""


def _seen() -> list[int]:
    return [os.stat(path).st_mtime_ns if os.path.isdir(path) else 0 for path in _CHANGED]


def _line(servers: list[str]) -> str:
    found: dict[str, Any] = {
        "servers": status.status(servers),
        "jobs": jobs.listed(JOBS),
        "builds": game.status(),
        "update": game.update_state(),
        "host": socket.gethostname(),
    }
    return json.dumps(found, default=vars, separators=(",", ":"))


def stream(selected: Callable[[], list[str]]) -> None:
    """Print lines until standard output is closed; `selected` returns the servers. Raises Failed."""
    closed = select.poll()
    closed.register(1, 0)  # POLLERR and POLLHUP alone
    seen: list[int] = []
    last = 0.0
    while True:
        now, changed = time.monotonic(), _seen()
        if changed != seen or now - last >= EVERY:
            seen, last = changed, now
            try:
                print(_line(selected()), flush=True)
            except BrokenPipeError:
                return
        if closed.poll(LOOK * 1000):
            return
