"""`l4d2ctl status --json --follow`: the state of a host, again at each change, without the cost of polling."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from left4me_host import game, instance, jobs, layout, status

EVERY = 10.0
"""Seconds after which a line comes even without a change; players come and go unseen until then."""
QUIET = 30.0
"""Seconds until the servers are asked again while nobody plays; the lines between repeat the last one."""
LOOK = 1.0
"""Seconds between two looks for changes."""
LATEST = 20
"""The latest jobs are in each line, as are all that run or wait."""
_CHANGED = (layout.JOBS, layout.RUN, layout.HELD)
"""Directories that change with each job, mount, start, stop or hold."""


def _seen() -> list[int]:
    return [os.stat(path).st_mtime_ns if os.path.isdir(path) else 0 for path in _CHANGED]


class RecentJobs:
    """The jobs for each line. Reads the record of an older job only at first, or while it runs or waits."""

    def __init__(self) -> None:
        self._known, self._open = 0, set[int]()

    def rows(self) -> list[dict[str, Any]]:
        """Return the latest jobs and all that run or wait, and once more those that have ended since."""
        numbers = jobs.latest()
        wanted = {*numbers[:LATEST], *self._open}
        found = jobs.listed([each for each in numbers if each > self._known or each in wanted])
        self._known = max(numbers, default=0)
        self._open = {job["job"] for job in found if job["result"] in (jobs.RUNNING, jobs.WAITING)}
        return [job for job in found if job["job"] in wanted | self._open]


def is_quiet(row: status.Status) -> bool:
    """Return whether nobody plays on a server and it is down or answers."""
    return row.players == 0 or (row.players is None and row.state in ("inactive", "failed"))


def _line(servers: list[status.Status], rows: list[dict[str, Any]]) -> str:
    found: dict[str, Any] = {
        "servers": servers,
        "jobs": rows,
        "builds": game.status(),
        "update": game.update_state(),
        "host": socket.gethostname(),
    }
    return json.dumps(found, default=vars, separators=(",", ":"))


def stream(selected: Callable[[], list[str]]) -> None:
    """Print lines until standard output is closed; `selected` returns the servers. Raises Failed."""
    closed, recent = instance.closed_stdout(), RecentJobs()
    seen: list[int] = []
    line, quiet, looked, printed = "", False, 0.0, 0.0
    while True:
        now, changed = time.monotonic(), _seen()
        if changed != seen or now - looked >= (QUIET if quiet else EVERY):
            rows = status.status(selected())
            line, quiet = _line(rows, recent.rows()), all(map(is_quiet, rows))
            seen, looked, printed = changed, now, 0.0
        if now - printed >= EVERY:
            printed = now
            try:
                print(line, flush=True)
            except BrokenPipeError:
                return
        if closed.poll(LOOK * 1000):
            return
