"""Find the owner of a POSIX lock on a file without taking the lock."""

import fcntl
import os
import struct

_FLOCK = "hhqqi4x"
"""struct flock of 64-bit Linux: type, whence, start, length, pid (fcntl(2))."""


def holder(fd: int) -> int:
    """Return the pid of a process whose lock conflicts with a write lock on the whole file; 0 without a conflict."""
    request = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _whence, _start, _length, pid = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, request))
    return 0 if kind == fcntl.F_UNLCK else pid
