"""A POSIX lock on a whole file: who has it, looked at without taking it."""

import fcntl
import os
import struct

_FLOCK = "hhqqi4x"
"""struct flock of 64-bit Linux: type, whence, start, length, pid (fcntl(2))."""


def holder(fd: int) -> int:
    """Return the pid of the process that keeps this one from locking the file; 0 where none does."""
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _whence, _start, _length, pid = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return 0 if kind == fcntl.F_UNLCK else pid
