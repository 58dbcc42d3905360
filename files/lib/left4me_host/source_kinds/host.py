"""A copy of an installation on the host, such as another tool's.

Its owner may change it while root copies it. So each name is opened in the directory that is open already, and never
through a link: what a link leads to, such as a file that only root may read, is not copied.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from typing import Any

from left4me_host.source_kinds.control import ReceivedTar

DEEPEST = 100
"""Levels of directories. An installation has fewer than 20; each takes a file descriptor."""
_FICLONE = 0x40049409
"""ioctl_ficlone(2): share the blocks of a file. Only some filesystems can."""
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def fill(wanted: dict[str, Any], new: str, _sent: ReceivedTar | None) -> None:
    """Copy the installation to the directory `new`. Raises OSError or ValueError."""
    path = wanted["source"]["path"]
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY)  # the operator's own path: it may have links
    try:
        _copy_directory(top, new, path, DEEPEST)
    finally:
        os.close(top)


def _copy_directory(source: int, target: str, path: str, levels: int) -> None:
    if not levels:
        raise ValueError(f"{path} is deeper than {DEEPEST} directories")
    for name in os.listdir(source):
        with suppress(FileNotFoundError):  # a running server has removed it
            _copy(source, name, f"{target}/{name}", f"{path}/{name}", levels)


def _copy(source: int, name: str, target: str, path: str, levels: int) -> None:
    kind = os.stat(name, dir_fd=source, follow_symlinks=False).st_mode
    if stat.S_ISLNK(kind):
        os.symlink(os.readlink(name, dir_fd=source), target)
        return
    opened = os.open(name, _FLAGS, dir_fd=source)
    try:
        found = os.fstat(opened)
        if stat.S_ISDIR(found.st_mode):
            os.mkdir(target)
            _copy_directory(opened, target, path, levels - 1)
        elif stat.S_ISREG(found.st_mode):
            _copy_file(opened, target, found.st_size)
        else:
            raise ValueError(f"{path} is neither a file nor a directory nor a link")
        os.chmod(target, found.st_mode & 0o777)
        os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
    finally:
        os.close(opened)


def _copy_file(source: int, target: str, size: int) -> None:
    """Copy at most `size` bytes: holes stay holes, and what the owner appends meanwhile is not copied."""
    with open(target, "xb") as new:
        with suppress(OSError):
            fcntl.ioctl(new.fileno(), _FICLONE, source)
            return
        os.ftruncate(new.fileno(), size)
        at = 0
        while (at := _data_from(source, at, size)) < size:
            end = min(size, os.lseek(source, at, os.SEEK_HOLE))
            os.lseek(new.fileno(), at, os.SEEK_SET)
            while at < end:
                if not (sent := os.sendfile(new.fileno(), source, at, end - at)):
                    return  # its owner has made it shorter
                at += sent


def _data_from(source: int, at: int, size: int) -> int:
    """Return where a file has data at or after `at` (lseek(2)); `size` if there is none."""
    try:
        return os.lseek(source, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return size
