"""Trees of files: list, copy, check and remove them.

The deploy also sends this file as a program (`python3 -I -c TEXT DIRECTORY…`), which prints {directory: listing}.
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

LONGEST = 6600  # seconds for one command: less than a deploy waits
PROGRESS = re.compile(r"(remote: )?(Enumerating|Counting|Compressing|Receiving|Resolving|Unpacking|Updating|Total)\b")


def _fail(error: OSError) -> None:
    raise error


def walk(path: str, without: Collection[str] = ()) -> Iterator[tuple[str, str, os.stat_result]]:
    """Yield the relative name, the path and the lstat() of everything below a directory, parents first.

    Names in `without` are skipped with their contents. Raises ValueError for a device, FIFO or socket.
    """
    for base, names, files in os.walk(path, onerror=_fail):
        names[:] = [name for name in names if name not in without]
        for full in (os.path.join(base, name) for name in names + files if name not in without):
            status = os.lstat(full)
            if stat.S_IFMT(status.st_mode) not in (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK):
                raise ValueError(f"{full} is neither a file nor a directory nor a link")
            yield os.path.relpath(full, path), full, status


def listing(path: str, without: Collection[str] = ()) -> dict[str, str]:
    """Return for each name below a directory: "d", "f:SHA256", "x:SHA256" (executable by its owner) or "l:TARGET"."""
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
    """Run a command. If it fails, raises OSError with the first error on its stderr.

    Kills the process group if the command writes nothing to stderr for `silence` seconds or runs longer than LONGEST.
    """
    stderr, end = b"", time.monotonic() + LONGEST
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
                raise OSError(f"no output for {silence} s" if left == silence else f"not finished after {LONGEST} s")
            if not (chunk := os.read(process.stderr.fileno(), 1 << 16)):
                break
            stderr += chunk
    if process.returncode:
        raise OSError(first_line(stderr) or f"{command[0]} failed with exit code {process.returncode}")


def first_line(output: bytes) -> str:
    """Return the first line that is not empty, advice or progress; if it ends with a colon, the next line too."""
    lines = map(str.strip, output.decode(errors="replace").splitlines())
    errors = [
        each for each in lines if each and not each.startswith(("warning:", "hint:")) and not PROGRESS.match(each)
    ]
    return " ".join(errors[: 2 if errors and errors[0].endswith(":") else 1])


def copy(sources: list[str], target: str) -> None:
    """Copy like `cp --archive`, with reflinks if the filesystem has them; DIRECTORY/. copies a directory's contents."""
    run("cp", "--archive", "--reflink=auto", "--", *sources, target)


def remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


@contextmanager
def beside(directory: str, kind: str = "new") -> Iterator[str]:
    """Yield an unguessable path in a directory; remove the path when the block ends."""
    path = f"{directory}/.{kind}-{secrets.token_hex(8)}"
    try:
        yield path
    finally:
        if os.path.lexists(path):
            remove(path)


def confine(path: str) -> None:
    """Raise ValueError if a symlink in a tree leads out of the tree, directly or through other symlinks."""
    top = os.path.realpath(path)
    for name, full, status in walk(path):
        if stat.S_ISLNK(status.st_mode) and os.path.commonpath([os.path.realpath(full), top]) != top:
            target = os.readlink(full)
            raise ValueError(f"{name} is a symlink to {target}, outside of the tree: only links within it are allowed")


def owner() -> tuple[int, int]:
    """Return the uid and gid of left4me, which owns the game and the layers."""
    return pwd.getpwnam("left4me").pw_uid, grp.getgrnam("left4me").gr_gid


def own(path: str) -> None:
    """Give a tree to left4me, group-writable: copy-ups keep owner and mode, so a server can change the files."""
    uid, gid = owner()
    for full, mode in [(path, os.stat(path).st_mode), *((full, status.st_mode) for _, full, status in walk(path))]:
        os.chown(full, uid, gid, follow_symlinks=False)
        if not stat.S_ISLNK(mode):
            os.chmod(full, 0o775 if stat.S_ISDIR(mode) or mode & 0o100 else 0o664)


if __name__ == "__main__":
    try:
        print(json.dumps({path: listing(path) if os.path.isdir(path) else {} for path in sys.argv[1:]}))
    except (OSError, ValueError) as error:
        sys.exit(f"cannot list the files: {error}")
