"""What a tree of files holds, and what every way of building one needs.

The deploy also sends it as a program, as `python3 -I -c TEXT DIRECTORY…`, which prints {directory: listing}.
"""

from __future__ import annotations

import grp
import hashlib
import json
import os
import pwd
import re
import secrets
import select
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

LONGEST = 6600  # seconds of one step: less than a deploy waits
PROGRESS = re.compile(r"(remote: )?(Enumerating|Counting|Compressing|Receiving|Resolving|Unpacking|Updating|Total)\b")


def _fail(error: OSError) -> None:
    raise error


def walk(path: str, without: Collection[str] = ()) -> Iterator[tuple[str, str, os.stat_result]]:
    """Yield the name below a directory, the path and the status of all in it, a directory before what it holds.

    What is named like one of `without` is left out, with all that it holds.
    """
    for base, names, files in os.walk(path, onerror=_fail):
        names[:] = [name for name in names if name not in without]
        for full in (os.path.join(base, name) for name in names + files if name not in without):
            status = os.lstat(full)
            if stat.S_IFMT(status.st_mode) not in (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK):
                raise ValueError(f"{full} is neither a file nor a directory nor a link")
            yield os.path.relpath(full, path), full, status


def listing(path: str, without: Collection[str] = ()) -> dict[str, str]:
    """Return what is at each name: d, f:SHA256, x:SHA256 where its owner may execute it, or l:TARGET."""
    found = {}
    for name, full, status in walk(path, without):
        if stat.S_ISDIR(status.st_mode):
            found[name] = "d"
        elif stat.S_ISLNK(status.st_mode):
            found[name] = f"l:{os.readlink(full)}"
        else:
            with open(full, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[name] = f"{'x' if status.st_mode & 0o100 else 'f'}:{digest}"
    return found


def run(*command: str, silence: float = LONGEST, more: Mapping[str, str] | None = None) -> None:
    """Run a command; raise OSError with the first thing it says where it fails: what follows is its consequences.

    One that shows no sign of life for `silence` seconds, or does not end, is killed with all that it started.
    """
    said, end = b"", time.monotonic() + LONGEST
    with subprocess.Popen(
        command,
        env={**os.environ, "LC_ALL": "C", **(more or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        process_group=0,
    ) as process:
        assert process.stderr
        while True:
            left = min(silence, end - time.monotonic())
            if left <= 0 or not select.select([process.stderr], [], [], left)[0]:
                os.killpg(process.pid, signal.SIGKILL)
                raise OSError(f"{silence} s without a sign of life" if left == silence else f"not done in {LONGEST} s")
            if not (chunk := os.read(process.stderr.fileno(), 1 << 16)):
                break
            said += chunk
    if process.returncode:
        raise OSError(first_line(said) or f"{command[0]} failed with exit code {process.returncode}")


def first_line(said: bytes) -> str:
    """Return the first line of what a program said that is neither empty nor advice nor progress, with what ends it."""
    lines = map(str.strip, said.decode(errors="replace").splitlines())
    told = [line for line in lines if line and not line.startswith(("warning:", "hint:")) and not PROGRESS.match(line)]
    return " ".join(told[: 2 if told and told[0].endswith(":") else 1])


def copy(sources: list[str], target: str) -> None:
    """Copy files, or with /. at its end what is in a directory, sharing their blocks where the filesystem can."""
    run("cp", "--archive", "--reflink=auto", "--", *sources, target)


def remove(path: str) -> None:
    """Remove a file, a symlink, or a directory with all that is in it."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


@contextmanager
def beside(directory: str, kind: str = "new") -> Iterator[str]:
    """Give a name in a directory that nobody can guess; what is still there in the end is removed."""
    path = f"{directory}/.{kind}-{secrets.token_hex(8)}"
    try:
        yield path
    finally:
        if os.path.lexists(path):
            remove(path)


def confine(path: str) -> None:
    """Raise ValueError where a symlink leads out of a tree, by whatever way: all links are in place by now."""
    top = os.path.realpath(path)
    for name, full, status in walk(path):
        if stat.S_ISLNK(status.st_mode) and os.path.commonpath([os.path.realpath(full), top]) != top:
            raise ValueError(f"{name} is a link to {os.readlink(full)}, which leads out: only links inside are taken")


def owner() -> tuple[int, int]:
    """Return whose the game and the layers are."""
    return pwd.getpwnam("left4me").pw_uid, grp.getgrnam("left4me").gr_gid


def own(path: str) -> None:
    """Give a tree to left4me, its group writing too: a copy-up keeps both, and so a server can change its own."""
    uid, gid = owner()
    for full, mode in [(path, os.stat(path).st_mode), *((full, status.st_mode) for _, full, status in walk(path))]:
        os.chown(full, uid, gid, follow_symlinks=False)
        if not stat.S_ISLNK(mode):
            os.chmod(full, 0o775 if stat.S_ISDIR(mode) or mode & 0o100 else 0o664)


if __name__ == "__main__":
    try:
        print(json.dumps({path: listing(path) if os.path.isdir(path) else {} for path in sys.argv[1:]}))
    except (OSError, ValueError) as error:
        sys.exit(f"cannot list what is there: {error}")
