"""Project quotas: the limit of what one server writes to the filesystem of /var/lib/left4me.

Each upper, with its work, is a project. Not each user: what overlayfs copies up belongs to left4me, and an entry of the
attic must not count against the server that was reset. If the upper itself has its project and the inherit flag, all
below it has the project, and overlayfs and the kernel keep it so; otherwise limit() goes through the whole tree.

overlayfs writes with the credentials of the mounter, but without CAP_SYS_RESOURCE (ovl_fill_super() of the kernel), so
limits hold for the game; not for root in upper. But it is uid 0, for which ext4 keeps 5 % of its blocks: without a
limit a server fills these too.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from contextlib import suppress
from typing import NamedTuple

from left4me_host import layout, syscalls

PATIENCE = 60.0
"""Seconds for the files that a server has without a project: systemd allows a start 90."""
BYTES_PER_FILE = 16384
"""A limit allows one inode for each of these: the default of mke2fs.conf(5), inode_ratio."""

# linux/fs.h: FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR, FS_XFLAG_PROJINHERIT, struct fsxattr (flags, extent size, extents,
# project, extent size of copies, padding)
_GET, _SET, _INHERIT = 0x801C581F, 0x401C5820, 0x200
_ATTRIBUTES = struct.Struct("=5I8x")
# linux/quota.h: QCMD(Q_SETQUOTA, PRJQUOTA), QIF_LIMITS, struct if_dqblk (limits in KiB, hard before soft; usage; times)
_SETQUOTA, _LIMITS = 0x800008 << 8 | 2, 1 | 4
_QUOTA = struct.Struct("=8QI4x")
# linux/dqblk_xfs.h: QCMD(Q_XGETQSTAT, PRJQUOTA), FS_QUOTA_PDQ_ENFD in the flags of struct fs_quota_stat
_GETSTATE, _ENFORCED = 0x5805 << 8 | 2, 1 << 5
_STATE = struct.Struct("=bxH76x")

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW


class Usage(NamedTuple):
    """What a server has written, and its limits: bytes on disk, and inodes."""

    used: int
    limit: int
    files: int
    files_limit: int


def usage(server: str, declared: int) -> Usage | None:
    """Return what a server's upper uses of its limit; None if the kernel does not limit it to `declared` bytes.

    None also if there is no upper: an unfinished reset may not have made it yet.
    """
    upper = f"{layout.runtime(server)}/upper"
    try:
        about = os.statvfs(upper)  # the kernel shows the limit of a project as the size of the filesystem
    except FileNotFoundError:
        return None
    unit, whole = about.f_frsize, os.statvfs(layout.RUNTIME)
    if about.f_blocks * unit > declared or about.f_blocks == whole.f_blocks or not enforced(upper):
        return None
    used, files = (about.f_blocks - about.f_bfree) * unit, about.f_files - about.f_ffree
    return Usage(used, about.f_blocks * unit, files, about.f_files)


def declared_of(env: dict[str, str]) -> int:
    """Return the disk_max in a server.env, in bytes; 0 without one."""
    text = env.get("LEFT4ME_DISK_MAX", "")
    return int(text) if text.isdecimal() else 0


def enforced(path: str) -> bool:
    """Return whether the filesystem of a path enforces limits of projects."""
    state = bytearray(_STATE.size)
    fd = os.open(path, _DIRECTORY)
    try:
        syscalls.quotactl(fd, _GETSTATE, 0, state)
    except OSError:
        return False
    finally:
        os.close(fd)
    return bool(_STATE.unpack(state)[1] & _ENFORCED)


def limit(server: str, most: int) -> None:
    """Limit a server's upper, which nothing uses, to `most` bytes, and its inodes accordingly; 0: no limit.

    Raises OSError, whose message has the reason and what to do.
    """
    runtime = layout.runtime(server)
    if not enforced(runtime):
        if most:
            raise OSError(f"the filesystem of {layout.VAR} enforces no project quotas; mount it with prjquota")
        return
    upper, work = os.open(f"{runtime}/upper", _DIRECTORY), os.open(f"{runtime}/work", _DIRECTORY)
    try:
        number = _number(upper)
        flags, size, extents, project, copies = _attributes(upper)
        if not most and flags & _INHERIT and project != number:
            return  # a project of the administrator's, which contains runtime
        _mark(work, number)
        if not flags & _INHERIT or project != number:
            _set_limit(upper, number, 0)  # which on XFS counts for root too
            if flags & _INHERIT:  # of another project: nothing could be renamed into upper
                fcntl.ioctl(upper, _SET, _ATTRIBUTES.pack(flags & ~_INHERIT, size, extents, project, copies))
            _mark_below(upper, work, number)
            _mark(upper, number)  # last, so that another start finishes what was interrupted
        _set_limit(upper, number, most)
    finally:
        os.close(upper)
        os.close(work)


def admit(source: int, target: int, upper: str) -> None:
    """Let the open directory `target` in `upper` take what is in the open directory `source`, of another upper.

    A rename into a directory with the inherit flag fails for files of other projects, and on XFS a limit counts for
    root too. `upper` keeps or gets a project, but not that flag, so the next limit() sets all right again, also after
    an interruption.
    """
    top = os.open(upper, _DIRECTORY)
    try:
        projects = {_attributes(fd)[3] for fd in (top, source, target)}
        if len(projects) > 1 and _attributes(top)[3]:
            with suppress(OSError):  # the filesystem may have projects, but no quotas
                _set_limit(top, _attributes(top)[3], 0)
        for fd in (top, target) if len(projects) > 1 else ():
            flags, size, extents, own, copies = _attributes(fd)
            fcntl.ioctl(fd, _SET, _ATTRIBUTES.pack(flags & ~_INHERIT, size, extents, own or max(projects), copies))
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP):  # a filesystem without projects
            raise
    finally:
        os.close(top)


def _set_limit(fd: int, number: int, most: int) -> None:
    """Limit a project to `most` bytes and the inodes for them; 0: no limit."""
    values = _QUOTA.pack(most >> 10, 0, 0, most // BYTES_PER_FILE, 0, 0, 0, 0, _LIMITS)
    syscalls.quotactl(fd, _SETQUOTA, number, bytearray(values))


def _number(upper: int) -> int:
    """Return the number of an upper's project, 31 bits and never 0, from its inode.

    That is the inode's number on ext4. XFS has the number of an allocation group above the lower bits, so the same
    lower bits occur in each group.
    """
    inode = os.fstat(upper).st_ino
    return (inode + (inode >> 31) * 0x61C88647) & 0x7FFFFFFF or 1


def _attributes(fd: int) -> tuple[int, ...]:
    """Return the fields of a struct fsxattr without its padding."""
    found = bytearray(_ATTRIBUTES.size)
    fcntl.ioctl(fd, _GET, found)
    return _ATTRIBUTES.unpack(found)


def _mark(fd: int, number: int) -> None:
    """Give an open file the project, and a directory also the inherit flag."""
    flags, size, extents, project, copies = _attributes(fd)
    wanted = flags | _INHERIT if stat.S_ISDIR(os.fstat(fd).st_mode) else flags
    if (flags, project) != (wanted, number):
        fcntl.ioctl(fd, _SET, _ATTRIBUTES.pack(wanted, size, extents, number, copies))


def _mark_below(top: int, work: int, number: int) -> None:
    """Give all below a directory the project. The game made the tree, so it may be deeper than open files allow.

    Raises OSError after PATIENCE seconds.
    """
    at, end = os.dup(top), time.monotonic() + PATIENCE
    try:
        left = [_mark_entries(at, work, number, end)]
        while left:
            if left[-1]:
                inner = os.open(left[-1].pop(), _DIRECTORY, dir_fd=at)
                at = _replaced(at, inner)
                _mark(at, number)
                left.append(_mark_entries(at, work, number, end))
            else:
                left.pop()
                if left:
                    at = _replaced(at, os.open("..", _DIRECTORY, dir_fd=at))
    finally:
        os.close(at)


def _replaced(old: int, new: int) -> int:
    os.close(old)
    return new


def _mark_entries(directory: int, work: int, number: int, end: float) -> list[str]:
    """Give what is in a directory the project, except directories; return their names. Raises OSError after `end`."""
    directories = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if time.monotonic() > end:
                raise OSError("it has too many files; remove them, or reset it, then restart it")
            if entry.is_dir(follow_symlinks=False):
                directories.append(entry.name)
            elif entry.is_file(follow_symlinks=False):
                fd = os.open(entry.name, _FILE, dir_fd=directory)
                try:
                    _mark(fd, number)
                finally:
                    os.close(fd)
            else:
                _make_again(entry.name, directory, work)
    return directories


def _make_again(name: str, directory: int, work: int) -> None:
    """Replace what cannot be opened, such as a symlink or a whiteout of overlayfs, by its like made in `work`.

    `work` passes its project on. With a whiteout of another project, a mkdir of the game fails (EXDEV).
    """
    new = "again"
    about = os.stat(name, dir_fd=directory, follow_symlinks=False)
    with suppress(FileNotFoundError):
        os.unlink(new, dir_fd=work)
    if stat.S_ISLNK(about.st_mode):
        os.symlink(os.readlink(name, dir_fd=directory), new, dir_fd=work)
    else:
        os.mknod(new, about.st_mode, about.st_rdev, dir_fd=work)
        os.chmod(new, stat.S_IMODE(about.st_mode), dir_fd=work)
    os.chown(new, about.st_uid, about.st_gid, dir_fd=work, follow_symlinks=False)
    os.rename(new, name, src_dir_fd=work, dst_dir_fd=directory)
