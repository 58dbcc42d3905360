"""Restarts idle servers of a host that require it, and waits until every server answers."""

from __future__ import annotations

import subprocess
import time
from argparse import Namespace
from collections.abc import Callable, Iterable

from left4me import answers, connection, fleet_status, manifest
from left4me.lock import protocol
from left4me.lock.wave_locks import Locks
from left4me.rollout.children import Done, interrupted, last_lines, run
from left4me.rollout.waves import Host
from left4me_host import server_lock
from left4me_host.idle import IdleTimer
from left4me_host.status import Status
from left4me_host.update_restarts import WORD

POLL, STARTING = 5.0, 1.0
"""Seconds between two queries of a host: while waiting for players, and while a server starts."""
LIMIT = 120
"""Seconds for one command on a host."""


class Failed(Exception):
    """The restarts of a host failed; each argument is one line of the reason."""


def _remote(host: Host, *words: str) -> Done:
    try:
        return run(connection.command(host.name, host.connection, *words), LIMIT)
    except subprocess.TimeoutExpired:
        raise Failed(f"{' '.join(words[-3:])}: did not finish within {LIMIT} s") from None
    except answers.Wrong as wrong:
        raise Failed(f"{' '.join(words[-3:])}: {wrong}") from None


def _players(row: Status) -> str:
    return "an unknown number of players" if row.players is None else f"{row.players} players"


class Drain:
    """Restarts the servers of one host after its deploy."""

    def __init__(self, host: Host, policy: Namespace, locks: Locks, note: Callable[[str], None]) -> None:
        self._host, self._policy, self._locks, self._note = host, policy, locks, note
        self._deadline = time.monotonic() + policy.drain
        self._idle: dict[str, IdleTimer] = {}
        self._silent: dict[str, float] = {}
        """The time of the first missing answer, by server or host."""
        self._started: set[str] = set()

    def restart_servers(self) -> list[str]:
        """Restart servers; return what was done and, if interrupted or with --no-restart, what remains to do.

        Raises Failed if the host or a server does not answer within the grace period.
        """
        done: list[str] = []
        while True:
            answer, now = self._ask(), time.monotonic()
            required, ready, down = [], [], []
            if isinstance(answer, fleet_status.Unreachable):
                for timer in self._idle.values():
                    timer.seen(None, now)
                silent = [self._silence(f"host {self._host.name}", str(answer), now)]
            else:
                self._silent.pop(f"host {self._host.name}", None)
                declared_up = [row for row in answer if row.id in self._host.running]
                required = [row for row in declared_up if row.restart_due]
                ready = [row for row in required if self._is_ready(row, now)]
                down = [row.id for row in declared_up if self._waits_for_a_port(row)]
                silent = self._silent_servers([row for row in declared_up if row.id not in down], now)
            stop = interrupted.is_set() or self._policy.no_restart
            if not silent and (stop or not (required or down)):
                if done:  # the restarted servers no longer use their old versions
                    self._change("unused versions were not removed: deploy again", manifest.CONTENT, "prune")
                done += [f"server {row.id} was not restarted: l4d2ctl restart {row.id}" for row in required]
                return done + [f"server {each} waits for its port: l4d2ctl start {each}" for each in down]
            if not silent and ready:
                done += self._restart(ready[0])  # the next one only after this one answers
            elif not silent and not required:
                done += self._start(down)
            else:
                self._note("; ".join(silent or [f"server {row.id} has {_players(row)}" for row in required]))
                time.sleep(STARTING) if silent else interrupted.wait(min(POLL, max(self._policy.quiet / 2, STARTING)))

    def _ask(self) -> list[Status] | fleet_status.Unreachable:
        """Make sure that the host's lock is still held, then return the status of its servers."""
        try:
            lost = self._locks.keep(self._host)
        except fleet_status.Unreachable as error:  # the host may be back within the grace period
            return error
        if lost:
            raise Failed("its lock was lost", *lost)
        return fleet_status.ask(self._host.name, self._host.connection, run)

    def _is_ready(self, row: Status, now: float) -> bool:
        return (
            self._idle.setdefault(row.id, IdleTimer(self._policy.quiet)).seen(row.players, now) or now >= self._deadline
        )

    def _silence(self, what: str, why: str, now: float) -> str:
        """Return a note about a host or server that does not answer. Raises Failed after the grace period."""
        if now - self._silent.setdefault(what, now) > self._policy.grace:
            raise Failed(f"{what}: {why} (for {self._policy.grace:.0f} s)")
        return f"{what}: {why}"

    def _waits_for_a_port(self, row: Status) -> bool:
        """Return whether the deploy could not start a server because another server uses its port."""
        return row.state == "inactive" and not row.held and row.id not in self._started

    def _silent_servers(self, rows: Iterable[Status], now: float) -> list[str]:
        """Return a note for each silent server. Servers that require a restart need not answer."""
        notes = []
        for row in rows:
            what = f"server {row.id}"
            if row.players is not None or row.held or row.restart_due:
                self._silent.pop(what, None)
                continue
            try:
                if row.state == "failed":
                    raise Failed(f"{what} cannot start; its log:")
                notes.append(self._silence(what, f"{row.state}, no answer", now))
            except Failed as failed:
                log = _remote(self._host, "l4d2ctl", "logs", "-n", "10", row.id)
                raise Failed(str(failed), *last_lines(log.stdout, log.stderr)) from None
        return notes

    def _change(self, failure: str, *words: str) -> Done:
        done = _remote(self._host, *self._locks.fenced(*words))
        if done.returncode not in (0, server_lock.TAKEN):
            raise Failed(failure, *last_lines(done.stdout, done.stderr))
        return done

    def _change_servers(self, failure: str, done: str, *words: str) -> list[str]:
        """Return what was done: nothing if another command, such as an operator's, is changing one of the servers."""
        said = self._change(failure, "l4d2ctl", "--origin", f"rollout by {protocol.operator()}", *words)
        if not said.returncode:
            return [done]
        self._note(" ".join(last_lines(said.stdout, said.stderr)))
        interrupted.wait(STARTING)
        return []

    def _start(self, servers: list[str]) -> list[str]:
        names = ", ".join(servers)
        self._note(f"starting server {names}")
        self._started |= {*servers}
        failure = f"server {names} was not started: fix the error below, then run the rollout again"
        return self._change_servers(failure, f"started server {names}", "start", *servers)

    def _restart(self, row: Status) -> list[str]:
        self._note(f"restarting server {row.id}")
        how = "no players"
        if row.players != 0:
            said = _remote(self._host, "l4d2ctl", "rcon", row.id, "say", WORD)
            how = f"{_players(row)}, {'not warned' if said.returncode else 'warned'}"
        failure = f"server {row.id} was not restarted: fix the error below, then run the rollout again"
        done = f"restarted server {row.id} ({how})"
        restarted = self._change_servers(failure, done, "restart", "--unless-stopped", row.id)
        if restarted:
            self._idle.pop(row.id, None)
        return restarted
