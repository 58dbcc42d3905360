"""System calls that Python 3.11 does not provide. Each raises OSError with the kernel's reason."""

import ctypes
import os

MS_NOSUID, MS_NODEV = 2, 4  # mount(2)
IN_UNMOUNT = 0x2000  # inotify(7)
CLONE_NEWNS = 0x20000  # setns(2)
_QUOTACTL_FD = 443  # on x86_64: asm/unistd_64.h; since Linux 5.14

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_LIBC.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_LIBC.inotify_init1.argtypes = (ctypes.c_int,)
_LIBC.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
_LIBC.setns.argtypes = (ctypes.c_int, ctypes.c_int)
_LIBC.syscall.argtypes = (ctypes.c_long, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p)


def _call(name: str, target: str, *arguments: object) -> int:
    """Call a libc function and return its result. Raises OSError, whose message names `target`."""
    result: int = getattr(_LIBC, name)(*arguments)
    if result < 0:
        error = OSError(f"{name} {target}: {os.strerror(ctypes.get_errno())}")
        error.errno = ctypes.get_errno()
        raise error
    return result


def mount_overlay(point: str, options: str, flags: int = 0) -> None:
    """Mount an overlay. If the options exceed one page (mount(2)), the error's reason is misleading."""
    target = os.fsencode(point)
    _call("mount", point, b"overlay", target, b"overlay", flags, os.fsencode(options))


def umount(point: str) -> None:
    _call("umount2", point, os.fsencode(point), 0)


def watch_unmount(path: str) -> int:
    """Return a non-blocking inotify(7) that reports when the filesystem at `path` is released everywhere."""
    inotify = _call("inotify_init1", path, os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _call("inotify_add_watch", path, inotify, os.fsencode(path), IN_UNMOUNT)
    except OSError:
        os.close(inotify)
        raise
    return inotify


def enter_mount_namespace(fd: int) -> None:
    """Move this thread into the mount namespace that `fd` refers to."""
    _call("setns", "a mount namespace", fd, CLONE_NEWNS)


def quotactl(fd: int, command: int, number: int, buffer: bytearray) -> None:
    """Run a command of quotactl(2), such as QCMD(Q_SETQUOTA, PRJQUOTA), for user, group or project `number`.

    `fd` is open on the filesystem. The kernel reads from `buffer`, or writes to it.
    """
    shared = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    _call("syscall", "quotactl_fd", _QUOTACTL_FD, fd, command, number, shared)
