"""What the modules about boxes share: where things are, errors, the lock, and calls of the machine's tools."""

import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
STATE = CHECKOUT / ".boxes"
# Names of interfaces, cgroups and units carry it, so that two checkouts on one machine do not meet.
CHECKOUT_ID = hashlib.sha256(os.fsencode(CHECKOUT)).hexdigest()[:6]

_INOTIFY = 1024
# Locks held here, see locked().
_held: set[int] = set()


class BoxError(Exception):
    """Something about a box went wrong; the message is one line that says what, why and what to do."""


def environment(**more: str) -> dict[str, str]:
    """The environment for programs that this project starts: as ours, with root's programs found and in English."""
    return {**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8", **more}


def held_locks() -> tuple[int, ...]:
    """Descriptors of the locks held, for children that must not be overtaken by the next call if we are killed."""
    return tuple(_held)


def tool(*argv: str | Path, timeout: float = 60, detaches: bool = False) -> str:
    """Run a program of this machine and return its standard output.

    It keeps our locks until it ends, unless it ``detaches`` into something that stays.
    Raises BoxError with the last line the program said, if it fails or takes longer than ``timeout`` seconds.
    """
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment(),
            pass_fds=() if detaches else held_locks(),
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError:
        raise BoxError(f"{argv[0]} is not installed on this machine") from None
    except subprocess.TimeoutExpired:
        raise BoxError(f"{argv[0]} {argv[1]} did not end within {timeout:.0f} s") from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise BoxError(f"{' '.join(map(str, argv))}: exit {done.returncode}: {said}")
    return done.stdout


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive flock on ``path`` (made if missing); a killed holder's lasts until its children are dead."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        _held.add(handle.fileno())
        try:
            yield
        finally:
            _held.discard(handle.fileno())


def allow_many() -> None:
    """Raise the kernel's limit of inotify instances, until the next boot, to what a hundred boxes need.

    A box takes about eight, and the kernel grants root 128: beyond it a box's services fail, one here, one there.
    """
    limit = Path("/proc/sys/fs/inotify/max_user_instances")
    have = int(limit.read_text())
    if have >= _INOTIFY:
        return
    try:
        limit.write_text(str(_INOTIFY))
        done = f"raised from {have} to {_INOTIFY}, until this machine's next boot"
    except OSError as error:
        done = f"stays {have} ({error.strerror}): more than about {have // 8} boxes will not start"
    print(f"fs.inotify.max_user_instances {done}", file=sys.stderr, flush=True)


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file so that no killed run leaves half of it."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(text)
    beside.chmod(mode)
    beside.rename(path)
