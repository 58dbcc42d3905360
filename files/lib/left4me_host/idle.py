"""When a server is idle: for a rollout that waits to restart it, and for a restart that an update waits for."""

from __future__ import annotations


class IdleTimer:
    """Since when a server has said, each time that it was asked, that nobody plays there."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: float | None = None

    def seen(self, players: int | None, now: float) -> bool:
        """Take an answer, or None for a missing one, and tell whether the quiet time is over."""
        if players != 0:
            self._since = None
            return False
        self._since = now if self._since is None else self._since
        return now - self._since >= self._seconds
