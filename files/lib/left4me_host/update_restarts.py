"""Restarts that an update waits for: never, when a server is empty, or at a time of the day."""

from __future__ import annotations

import sys
import time

from left4me_host import idle, instance, lifecycle, rcon, status

POLL = 5.0  # seconds between two looks
QUIET = 60.0  # seconds for which every answer has to say that nobody plays
WORD = "This server restarts now for an update. It is back in a moment."


def policy(server: str) -> str:
    """Return what the data say: never, when-empty, or at HH:MM."""
    return "".join(instance.declared_lines(server, "restart")) or "never"


def seconds_until(clock: str, now: float) -> float:
    """Return how long it is from `now` until it is HH:MM here the next time."""
    hours, minutes = map(int, clock.split(":"))
    today = time.localtime(now)
    at = time.mktime((*today[:3], hours, minutes, 0, 0, 0, -1))
    if at <= now:
        at = time.mktime((today[0], today[1], today[2] + 1, hours, minutes, 0, 0, 0, -1))
    return at - now


def waiting() -> dict[str, status.Status]:
    """Return the running servers whose build is not the one that a restart would give them, and may be restarted."""
    rows = status.status([server for server in instance.declared() if policy(server) != "never"])
    return {row.id: row for row in rows if row.build_due}


def _restart(row: status.Status) -> None:
    lifecycle.require_ports([row.id], "restart")
    print(f"restarting server {row.id}, {row.players if row.players is not None else 'unknown'} players", flush=True)
    if row.players != 0:
        try:
            rcon.rcon(row.id, f"say {WORD}")
        except (instance.Failed, OSError) as failed:
            print(f"could not be told: {failed}", file=sys.stderr)
    lifecycle.restart([row.id], unless_stopped=True)


def main(words: list[str]) -> int:
    """Restart what waits, each at its time, and return the exit code; `words` are the quiet time, if not QUIET."""
    silence = float(words[0]) if words else QUIET
    quiet: dict[str, idle.IdleTimer] = {}
    seen: dict[tuple[str, str], tuple[float, float]] = {}
    failed: set[str] = set()
    while rows := {server: row for server, row in waiting().items() if server not in failed}:
        now = time.monotonic()
        # What waits anew has a time of its own.
        quiet = {server: since for server, since in quiet.items() if server in rows}
        seen = {key: begun for key, begun in seen.items() if key[0] in rows}
        for server, row in rows.items():
            _at, _, clock = policy(server).partition(" ")
            if clock:
                # An update that comes while this waits for another has a time of its own.
                begun, begun_at = seen.setdefault((server, instance.lowers(server)[-1]), (now, time.time()))
                due = now - begun >= seconds_until(clock, begun_at)
            else:
                due = quiet.setdefault(server, idle.IdleTimer(silence)).seen(row.players, now)
            if due:
                try:
                    _restart(row)
                except (instance.Failed, OSError) as error:
                    print(error, file=sys.stderr)
                    failed.add(server)
                quiet.pop(server, None)
                break  # that took its time: who plays on the others now?
        time.sleep(min(POLL, silence))  # players come and go, and nobody tells
    return 1 if failed else 0
