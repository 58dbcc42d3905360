"""What the box modules share: paths, errors, the lock, and calls of tools."""

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
# Part of the names of interfaces, cgroups and units, so that two checkouts on one machine do not collide.
CHECKOUT_ID = hashlib.sha256(os.fsencode(CHECKOUT)).hexdigest()[:6]

_INOTIFY = 1024
# File descriptors of the held locks, see locked().
_held: set[int] = set()


class BoxError(Exception):
    """An error with a one-line message."""


def environment(**more: str) -> dict[str, str]:
    """Return the environment for child programs: this process's, with sbin in PATH and English messages."""
    return {**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8", **more}


def held_locks() -> tuple[int, ...]:
    """Return the file descriptors of the held locks: a child that inherits them keeps the locks after a kill."""
    return tuple(_held)


def tool(*argv: str | Path, timeout: float = 60, detaches: bool = False) -> str:
    """Run a program on this machine and return its standard output.

    It holds the locks until it ends, unless it ``detaches`` a process that stays.
    Raises BoxError with the program's last line if it fails or takes longer than ``timeout`` seconds.
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
        raise BoxError(f"{argv[0]} {argv[1]} did not finish within {timeout:.0f} s") from None
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise BoxError(f"{' '.join(map(str, argv))}: exit {done.returncode}: {last}")
    return done.stdout


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive flock on ``path``. After a kill the lock lasts until the children have ended too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        _held.add(handle.fileno())
        try:
            yield
        finally:
            _held.discard(handle.fileno())


def allow_many() -> None:
    """Raise the kernel's limit of inotify instances for a hundred boxes, until the next boot.

    A box needs about eight; the default for root is 128. Above the limit, random services of a box fail.
    """
    limit = Path("/proc/sys/fs/inotify/max_user_instances")
    current = int(limit.read_text())
    if current >= _INOTIFY:
        return
    try:
        limit.write_text(str(_INOTIFY))
        done = f"raised from {current} to {_INOTIFY} until the next boot"
    except OSError as error:
        done = f"stays {current} ({error.strerror}): more than about {current // 8} boxes will not start"
    print(f"fs.inotify.max_user_instances {done}", file=sys.stderr, flush=True)


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file atomically."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(text)
    beside.chmod(mode)
    beside.rename(path)
