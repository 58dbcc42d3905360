"""Restart servers once they are idle: `l4d2ctl restart --when-empty`.

A job that waits locks RUN/ID.waiting, which has its number and pid. A command that changes the server writes into that
file what cancels the job, and sends SIGUSR1.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from contextlib import ExitStack, suppress

from left4me_host import a2s, idle, instance, jobs, layout, lifecycle, server_lock

_WAKE = signal.SIGUSR1


def _open(server: str, flags: int = 0) -> tuple[int, bool]:
    """Return a descriptor of a server's marker, and whether no job waits: then the descriptor locks it."""
    fd = os.open(layout.waiting_marker(server), os.O_RDWR | os.O_NOFOLLOW | flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return fd, False
    return fd, True


def _lock(server: str) -> int:
    """Return a descriptor that locks a server's marker. Raises Failed if another job waits to restart the server."""
    while True:
        fd, free = _open(server, os.O_CREAT)
        if not free:
            other = _read(fd)[0]
            os.close(fd)
            raise instance.Failed(_refusal(server, other))
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.stat(layout.waiting_marker(server))):
                return fd
        os.close(fd)  # of a job that has just removed it


def _read(fd: int) -> tuple[str, int, str]:
    """Return a job's number, its pid, and what cancels it, if anything."""
    number, pid, by = [*os.pread(fd, 300, 0).decode(errors="replace").strip().split(" ", 2), "", "", ""][:3]
    return number, int(pid) if pid.isdecimal() else 0, by


def require_none(servers: list[str]) -> None:
    """Raise Failed if a job already waits to restart one of the servers."""
    for server in servers:
        with suppress(FileNotFoundError):
            fd, free = _open(server)
            number = _read(fd)[0]
            os.close(fd)
            if not free:
                raise instance.Failed(_refusal(server, number))


def _refusal(server: str, number: str) -> str:
    follow = f"; follow it with: l4d2ctl jobs -f {number}" if number not in ("", "0") else ""
    which = f"job {number}" if follow else "another job"
    return f"server {server}: {which} waits to restart it already{follow}; l4d2ctl start {server} cancels it"


def cancel(servers: list[str], by: str) -> None:
    """Cancel the jobs that wait to restart the servers; `by` says what does it, such as "job 165 (stop by anna)"."""
    for server in servers:
        with suppress(FileNotFoundError):
            fd, free = _open(server)
            number, pid, _by = _read(fd)
            if not free and pid:
                os.pwrite(fd, f"{number} {pid} {by}\n".encode(), 0)
                with suppress(ProcessLookupError):  # it has just ended
                    os.kill(pid, _WAKE)
                what = f"job {number}, which waited to restart it when empty" if number != "0" else "a waiting restart"
                jobs.tell(f"server {server}: cancelled {what}", "stderr")
            os.close(fd)


class _Waiting:
    """A server whose restart waits."""

    def __init__(self, server: str, number: int) -> None:
        self.server, self.timer, self.told = server, idle.IdleTimer(idle.QUIET), ""
        self._fd = _lock(server)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{number} {os.getpid()}\n".encode(), 0)

    def cancelled_by(self) -> str:
        return _read(self._fd)[2]

    def require_not_cancelled(self) -> None:
        """Raise Cancelled if another command has cancelled the restart."""
        if by := self.cancelled_by():
            raise jobs.Cancelled(f"server {self.server}: its restart is cancelled by {by}")

    def says(self, text: str) -> None:
        """Print what is new about the server."""
        if text != self.told:
            print(f"server {self.server} {text}", flush=True)
            self.told = text

    def end(self) -> None:
        """Wait no more; a second call does nothing."""
        if self._fd < 0:
            return
        with suppress(FileNotFoundError):
            os.unlink(layout.waiting_marker(self.server))
        os.close(self._fd)
        self._fd = -1


def run(servers: list[str], job: jobs.Job) -> None:
    """Restart each server that runs as soon as it is idle. Raises Failed, or Cancelled.

    Prints at once what became of a server if others still wait.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [_WAKE])
    failures, cancelled = [], []
    with ExitStack() as markers:
        waiting = []
        for server in servers:
            waiting.append(_Waiting(server, job.number))
            markers.callback(waiting[-1].end)
        while waiting:
            done = next((each for each in waiting if each.cancelled_by()), None) or _next(waiting)
            if done:
                waiting.remove(done)
                became = f"server {done.server} is restarted"
                try:
                    done.require_not_cancelled()
                    _restart(done, job)
                except jobs.Cancelled as by:
                    cancelled.append(became := str(by))
                except (instance.Failed, OSError) as failed:
                    failures.append(became := str(failed))
                done.end()
                if waiting:
                    print(became, flush=True)
            else:
                if job.result != jobs.WAITING:
                    job.becomes(jobs.WAITING)
                    jobs.outlive(False)  # a shutdown does not wait for it
                signal.sigtimedwait([_WAKE], idle.POLL)
    if failures:
        raise instance.Failed("\n".join([*failures, *cancelled]))
    if cancelled:
        raise jobs.Cancelled("\n".join(cancelled))


def _next(waiting: list[_Waiting]) -> _Waiting | None:
    """Return a server that is idle or does not run; lifecycle.restart() skips the latter."""
    states = instance.properties([each.server for each in waiting], "ActiveState")
    down = [each for each in waiting if states[each.server]["ActiveState"] in ("inactive", "failed")]
    started = {each.server: instance.started_with(each.server) for each in waiting}
    addresses = {
        server: address
        for server, env in started.items()
        if (address := instance.address_of(env or instance.environment(server)))
    }
    answers, now = a2s.ask(addresses), time.monotonic()
    for each in waiting:
        players = answers[each.server].players if each.server in answers else None
        if each.timer.seen(players, now) or each in down:
            return each
        each.says("does not answer" if players is None else f"has {players} player{'s' * (players != 1)}")
    return None


def _restart(ready: _Waiting, job: jobs.Job) -> None:
    """Restart a server. Raises Failed, or Cancelled."""
    jobs.outlive()
    job.becomes(jobs.RUNNING)
    with server_lock.held([ready.server], waits=True) as lock:
        lock.note(job.number, job.about)
        ready.require_not_cancelled()
        lifecycle.restart([ready.server], unless_stopped=True)
