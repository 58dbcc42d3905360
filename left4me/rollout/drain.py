"""The restarts that a deploy left due on a host, each when nobody plays there, and the wait for every answer."""

from __future__ import annotations

import subprocess
import time
from argparse import Namespace
from collections.abc import Callable, Iterable

from left4me import connection, fleet_status, manifest
from left4me.connection import Command
from left4me.lock.wave_locks import Locks
from left4me.rollout.children import Done, interrupted, last_lines, run
from left4me.rollout.waves import Host
from left4me_host.idle import IdleTimer
from left4me_host.status import Status
from left4me_host.update_restarts import WORD

POLL, STARTING = 5.0, 1.0
"""Seconds between two looks at a host: where players are waited for, and where a server starts."""
LIMIT = 120
"""Seconds for one command on a host."""


class Failed(Exception):
    """Why a host stays as it is, line by line."""


def ask(host: Host) -> list[Status] | fleet_status.Unreachable:
    """Ask a host for the status of its servers."""
    return fleet_status.ask(host.name, host.connection, _run)


def _run(command: Command, limit: float) -> Done:
    return run(command.words, limit, command.environment, command.stdin)


def _remote(host: Host, *words: str) -> Done:
    try:
        return _run(connection.command(host.name, host.connection, *words), LIMIT)
    except subprocess.TimeoutExpired:
        raise Failed(f"{' '.join(words[-3:])}: no end within {LIMIT} s") from None


def _players(row: Status) -> str:
    return "no answer" if row.players is None else f"{row.players} players"


class Drain:
    """A host between its deploy and its proof."""

    def __init__(self, host: Host, policy: Namespace, locks: Locks, note: Callable[[str], None]) -> None:
        self._host, self._policy, self._locks, self._note = host, policy, locks, note
        self._deadline = time.monotonic() + policy.drain
        self._idle: dict[str, IdleTimer] = {}
        self._silent: dict[str, float] = {}
        """Since when what has to answer does not: a server, or the host by its name."""
        self._started: set[str] = set()

    def settle(self) -> tuple[list[str], list[str], list[str]]:
        """Return what was done, which servers want a restart still, and which are down for one of those has their port.

        None is left but where interrupted or told not to restart.
        Raises Failed where a server, or the host, does not answer within the grace.
        """
        done: list[str] = []
        while True:
            answer, now = self._ask(), time.monotonic()
            due, ready, down = [], [], []
            if isinstance(answer, fleet_status.Unreachable):
                for timer in self._idle.values():
                    timer.seen(None, now)
                waits = [self._waited_for(f"host {self._host.name}", str(answer), now)]
            else:
                self._silent.pop(f"host {self._host.name}", None)
                declared_up = [row for row in answer if row.id in self._host.running]
                due = [row for row in declared_up if row.restart_due]
                ready = [row for row in due if self._is_ready(row, now)]
                down = [row.id for row in declared_up if self._waits_for_a_port(row)]
                waits = self._silent_servers([row for row in declared_up if row.id not in down], now)
            stop = interrupted.is_set() or self._policy.no_restart
            if not waits and (stop or not (due or down)):
                if done:  # what the servers ran on until now
                    self._change("versions that nobody runs were not removed", manifest.CONTENT, "prune")
                return done, [row.id for row in due], down
            if not waits and ready:
                done.append(self._restart(ready[0]))  # the next one after this one's answer
            elif not waits and not due:
                done.append(self._start(down))
            else:
                self._note("; ".join(waits or [f"server {row.id} has {_players(row)}" for row in due]))
                time.sleep(STARTING) if waits else interrupted.wait(min(POLL, max(self._policy.quiet / 2, STARTING)))

    def _ask(self) -> list[Status] | fleet_status.Unreachable:
        """Ask the host, whose lock this still holds or holds again."""
        try:
            lost = self._locks.keep(self._host)
        except fleet_status.Unreachable as error:  # as when the host itself is: it may be back within the grace
            return error
        if lost:
            raise Failed("its lock was lost", *lost)
        return ask(self._host)

    def _is_ready(self, row: Status, now: float) -> bool:
        return (
            self._idle.setdefault(row.id, IdleTimer(self._policy.quiet)).seen(row.players, now) or now >= self._deadline
        )

    def _waited_for(self, what: str, why: str, now: float) -> str:
        if now - self._silent.setdefault(what, now) > self._policy.grace:
            raise Failed(f"{what}: {why}, for {self._policy.grace:.0f} s")
        return f"{what}: {why}"

    def _waits_for_a_port(self, row: Status) -> bool:
        """Tell whether the deploy did not start a server: another one has its port until that one's restart."""
        return row.state == "inactive" and not row.held and row.id not in self._started

    def _silent_servers(self, rows: Iterable[Status], now: float) -> list[str]:
        """Return which servers have to answer and do not; one that requires a restart need not."""
        waits = []
        for row in rows:
            what = f"server {row.id}"
            if row.players is not None or row.held or row.restart_due:
                self._silent.pop(what, None)
                continue
            try:
                if row.state == "failed":
                    raise Failed(f"{what} cannot start")
                waits.append(self._waited_for(what, f"{row.state}, no answer", now))
            except Failed as failed:
                log = _remote(self._host, "l4d2ctl", "logs", "-n", "10", row.id)
                raise Failed(str(failed), *last_lines(log.stdout, log.stderr)) from None
        return waits

    def _change(self, failure: str, *words: str) -> None:
        done = _remote(self._host, *self._locks.fenced(*words))
        if done.returncode:
            raise Failed(failure, *last_lines(done.stdout, done.stderr))

    def _start(self, servers: list[str]) -> str:
        names = ", ".join(servers)
        self._note(f"starting server {names}")
        self._started |= {*servers}
        self._change(f"server {names} was not started", "l4d2ctl", "start", *servers)
        return f"started server {names}"

    def _restart(self, row: Status) -> str:
        self._note(f"restarting server {row.id}")
        how = "empty"
        if row.players != 0:
            told = _remote(self._host, "l4d2ctl", "rcon", row.id, "say", WORD)
            how = f"{_players(row)}, {'could not be told' if told.returncode else 'told'}"
        self._change(f"server {row.id} was not restarted", "l4d2ctl", "restart", "--unless-stopped", row.id)
        self._idle.pop(row.id, None)
        return f"restarted server {row.id} ({how})"
