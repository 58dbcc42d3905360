"""Restart servers after an update of the game, as their `restart` says: never, when idle, or at a time of day."""

from __future__ import annotations

import sys
import time

from left4me_host import idle, instance, jobs, lifecycle, rcon, server_lock, status, when_empty

WORD = "This server restarts now for an update. It is back in a moment."


def policy(server: str) -> str:
    """Return a server's declared `restart`: never, when-empty, or at HH:MM."""
    return "".join(instance.declared_lines(server, "restart")) or "never"


def seconds_until(clock: str, now: float) -> float:
    """Return the seconds from `now` until the next HH:MM in local time."""
    hours, minutes = map(int, clock.split(":"))
    today = time.localtime(now)
    at = time.mktime((*today[:3], hours, minutes, 0, 0, 0, -1))
    if at <= now:
        at = time.mktime((today[0], today[1], today[2] + 1, hours, minutes, 0, 0, 0, -1))
    return at - now


def waiting() -> dict[str, status.Status]:
    """Return the servers that require a restart for a new build and whose `restart` allows it, by id."""
    rows = status.status([server for server in instance.declared() if policy(server) != "never"])
    return {row.id: row for row in rows if row.build_due}


def _restart(row: status.Status) -> None:
    job = jobs.Job("restart", [row.id], f"restart --unless-stopped {row.id}", who="update")
    with server_lock.held([row.id]) as lock, jobs.recorded(job, "left4me-restart"):
        lock.note(job.number, job.about)
        when_empty.cancel([row.id], f"job {job.number} ({job.about})")
        _announce_and_restart(row)


def _announce_and_restart(row: status.Status) -> None:
    lifecycle.require_ports([row.id], "restart")
    print(f"restarting server {row.id}, {row.players if row.players is not None else 'unknown'} players", flush=True)
    if row.players != 0:
        try:
            rcon.rcon(row.id, f"say {WORD}")
        except (instance.Failed, OSError) as failed:
            print(f"server {row.id}: cannot announce the restart: {failed}", file=sys.stderr)
    lifecycle.restart([row.id], unless_stopped=True)


def main(words: list[str]) -> int:
    """Restart servers, each when its `restart` says, until none is left; return the exit code.

    `words` may contain the quiet period in seconds (default idle.QUIET).
    """
    quiet_period = float(words[0]) if words else idle.QUIET
    timers: dict[str, idle.IdleTimer] = {}
    waits: dict[tuple[str, str, str], tuple[float, float]] = {}
    failed: set[str] = set()
    while rows := {server: row for server, row in waiting().items() if server not in failed}:
        now = time.monotonic()
        # Forget the times of servers that no longer require a restart.
        timers = {server: timer for server, timer in timers.items() if server in rows}
        waits = {key: start for key, start in waits.items() if key[0] in rows and policy(key[0]) == f"at {key[2]}"}
        for server, row in rows.items():
            _at, _, clock = policy(server).partition(" ")
            if clock:
                # Each update waits for its own next HH:MM, and so does each HH:MM that a deploy declares meanwhile.
                key = (server, instance.lowers(server)[-1], clock)
                start, start_at = waits.setdefault(key, (now, time.time()))
                restart_now = now - start >= seconds_until(clock, start_at)
            else:
                restart_now = timers.setdefault(server, idle.IdleTimer(quiet_period)).seen(row.players, now)
            if restart_now:
                try:
                    _restart(row)
                except server_lock.Taken as taken:
                    print(taken, file=sys.stderr)  # it may be a restart; the next query shows what is left to do
                except (instance.Failed, OSError) as error:
                    if str(error):
                        print(error, file=sys.stderr)
                    failed.add(server)
                timers.pop(server, None)
                break  # the restart took time: query the other servers again
        time.sleep(min(idle.POLL, quiet_period))
    return 1 if failed else 0
