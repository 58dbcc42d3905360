"""Detect idle servers, for rollouts and for restarts after an update."""

from __future__ import annotations

POLL = 5.0
"""Seconds between two queries of a server's players, on its host."""
QUIET = 60.0
"""Seconds without players after which a server is idle."""


class IdleTimer:
    """Measures how long a server has reported no players without interruption."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: float | None = None

    def seen(self, players: int | None, now: float) -> bool:
        """Record a player count (None: no answer) and return whether the server is idle; `now` is in seconds."""
        if players != 0:
            self._since = None
            return False
        self._since = now if self._since is None else self._since
        return now - self._since >= self._seconds
