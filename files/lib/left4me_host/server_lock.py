"""The lock of a server, RUN/ID.job: one command at a time changes it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from left4me_host import instance, jobs, layout

TAKEN = 3
"""The exit code of a command that finds a server locked."""


class Taken(instance.Failed):
    """Another command changes the server; the message names it."""


class Held:
    """The locks of servers that a command holds."""

    def __init__(self) -> None:
        self.locks: list[int] = []
        self.turn = -1
        """The lock of whoever takes locks and has not noted yet for which job."""

    def note(self, number: int, about: str) -> None:
        """Tell whoever finds the locks taken by which job, such as "reset by anna"."""
        for lock in self.locks:
            with suppress(OSError):  # it only informs
                os.pwrite(lock, f"{number} {about}\n".encode(), 0)
        self.end_turn()

    def end_turn(self) -> None:
        if self.turn >= 0:
            fcntl.flock(self.turn, fcntl.LOCK_UN)
            os.close(self.turn)
            self.turn = -1


def path(server: str) -> str:
    return f"{layout.RUN}/{server}.job"


@contextmanager
def held(servers: list[str], waits: bool = False) -> Iterator[Held]:
    """Lock servers for a command that changes them.

    If another command changes one of them, raise Taken, or wait for its end if `waits`. Raises OSError. The caller
    calls note() at once: until then other commands wait, so that they can name this one.
    """
    taken = Held()
    try:
        os.makedirs(layout.RUN, exist_ok=True)
        if servers and not waits:
            taken.turn = os.open(f"{layout.RUN}/turn", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            fcntl.flock(taken.turn, fcntl.LOCK_EX)
        for server in sorted(servers):  # in one order, so that two commands cannot wait for each other
            taken.locks.append(_take(server, waits))
        yield taken
    finally:
        taken.end_turn()
        for lock in taken.locks:
            os.ftruncate(lock, 0)  # so that the note is never of an earlier command
            os.close(lock)


def awaited(servers: list[str], number: int, about: str) -> Iterator[list[str]]:
    """Yield servers, locked until the next step, for a stop, which nothing refuses.

    First come those that no command changes, then each other one once its command has ended. A lock that cannot be
    created stops no stop.
    """
    busy: list[str] = []
    with held([]) as taken:
        free = []
        for server in sorted(servers):
            try:
                taken.locks += _lock_for_stop(server, waits=False)
                free.append(server)
            except Taken:
                busy.append(server)
        taken.note(number, about)
        if free:
            yield free
    for server in busy:
        with held([]) as taken:
            taken.locks += _lock_for_stop(server, waits=True)
            taken.note(number, about)
            yield [server]


def _lock_for_stop(server: str, waits: bool) -> list[int]:
    """Return the lock of a server; none if it cannot be created. Raises Taken."""
    try:
        return [_take(server, waits)]
    except OSError as error:
        jobs.tell(f"server {server}: stopping it without its lock: {error}", "stderr")
        return []


def _take(server: str, waits: bool) -> int:
    told = False
    while True:
        lock = os.open(path(server), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            try:
                if not waits:
                    raise Taken(f"server {server}: {_what(lock)} is running; {_do(lock)}") from None
                if not told:
                    jobs.tell(f"server {server}: waiting for {_what(lock)}", "stderr")
                    told = True
                fcntl.flock(lock, fcntl.LOCK_EX)
            except BaseException:
                os.close(lock)
                raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(path(server))):
                os.ftruncate(lock, 0)  # the note of a command that was killed
                return lock
        os.close(lock)  # left4me-remove has removed the file; another command may have locked a new one


def _noted(lock: int) -> tuple[str, str]:
    number, _, about = instance.plain(os.pread(lock, 200, 0).decode(errors="replace").strip()).partition(" ")
    return number if number != "0" else "", about


def _what(lock: int) -> str:
    number, about = _noted(lock)
    since = time.strftime("%H:%M:%S", time.localtime(os.fstat(lock).st_mtime))
    return f"{f'job {number}' if number else 'another command'} ({about or 'not noted'}, since {since})"


def _do(lock: int) -> str:
    number, _about = _noted(lock)
    return f"follow it with: l4d2ctl jobs -f {number}" if number else "wait until it ends"
