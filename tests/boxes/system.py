"""What the modules about boxes share: where things are, errors, the lock, and calls of the machine's tools."""

import contextlib
import fcntl
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
STATE = CHECKOUT / ".boxes"
# Names of interfaces, cgroups and units carry it, so that two checkouts on one machine do not meet.
CHECKOUT_ID = hashlib.sha256(os.fsencode(CHECKOUT)).hexdigest()[:6]


class BoxError(Exception):
    """Something about a box went wrong; the message is one line that says what, why and what to do."""


def environment(**more: str) -> dict[str, str]:
    """The environment for programs that this project starts: as ours, with root's programs found and in English."""
    return {**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8", **more}


def tool(*argv: str | Path, timeout: float = 60) -> str:
    """Run a program of this machine and return its standard output.

    Raises BoxError with the last line the program said, if it fails or takes longer than ``timeout`` seconds.
    """
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment(),
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
def locked(path: Path) -> Iterator[int]:
    """Hold an exclusive flock on ``path`` (made if missing) and yield its descriptor.

    The kernel drops it when the last process that has the descriptor is dead.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle.fileno()


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file so that no killed run leaves half of it."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(text)
    beside.chmod(mode)
    beside.rename(path)
