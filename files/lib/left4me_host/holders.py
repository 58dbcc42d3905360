"""Who keeps a server's overlay busy, and how: the question that cost days.

A reference pins a mount, whatever mount namespace it is in: a working directory, a root, an open file, a mapping, a
running program. A process that merely lives in the unit's mount namespace pins that namespace's copy of the mount,
and a copy in a foreign namespace outlives the unit; /proc/PID/ns/mnt alone proves neither, since its numbers are
used again. So each process's own mountinfo is read, and everything it refers to is compared with the mount's device.
"""

from __future__ import annotations

import os
from collections import namedtuple
from collections.abc import Iterator

from left4me_host import instance, layout, mountinfo, procfs
from left4me_host.mountinfo import Mount


class Holder(namedtuple("Holder", ("pid", "command", "kind", "path"))):
    """A process, and what of it holds the overlay: cwd, root, exe, fd, map, mount namespace, a mount of it or in it."""

    pid: int
    command: str
    kind: str
    path: str

    def __str__(self) -> str:
        """Return one line."""
        return instance.plain(f"pid {self.pid} ({self.command}) by its {self.kind}: {self.path}")


def _device(path: str) -> str:
    """Return major:minor, as mountinfo has it."""
    try:
        number = os.stat(path).st_dev
    except OSError:
        return ""  # the process has ended, or the reference leads nowhere
    return f"{os.major(number)}:{os.minor(number)}"


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return "?"


def _listed(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _command(task: str) -> str:
    return procfs.read(f"/proc/{task.partition('/')[0]}/comm").strip() or "?"


def copies(server: str, mounts: list[Mount]) -> list[Mount]:
    """Return the mounts of a server's overlay, at whatever place, among those of one mount namespace."""
    upper = f"upperdir={layout.runtime(server)}/upper"
    return [mount for mount in mounts if upper in mount.options]


def _references(task: str, wanted: frozenset[str], merged: str) -> Iterator[tuple[str, str, str]]:
    base = f"/proc/{task}"
    links = [("cwd", f"{base}/cwd"), ("root", f"{base}/root"), ("exe", f"{base}/exe")]
    for kind, link in [*links, *((f"fd {name}", f"{base}/fd/{name}") for name in _listed(f"{base}/fd"))]:
        if (device := _device(link)) in wanted:
            yield kind, _link(link), device
    if "/" in task:
        return  # a thread's memory is its process's
    # A file is mapped in several pieces, of which one tells. The device is asked of map_files, and the path counts too:
    # the one in maps is that of the file in the layer below on older kernels.
    pieces = {}
    for line in procfs.read(f"{base}/maps").split("\n")[:-1]:
        piece, _mode, _offset, *file = line.split(maxsplit=5)
        if len(file) == 3 and file[1] != "0":
            pieces[tuple(file)] = piece
    for (_layers, _inode, path), piece in pieces.items():
        begin, _, end = piece.partition("-")
        link = f"{base}/map_files/{int(begin, 16):x}-{int(end, 16):x}"
        if path.startswith(f"{merged}/"):
            yield "map", path, ""
        elif (device := _device(link)) in wanted:
            yield "map", _link(link), device


def _mounts_in(space: str) -> list[Mount]:
    """Return the mounts of a mount namespace that a path below /proc leads to; none where it is gone.

    Nobody lives in it who sees it whole, and could be read instead. No program of it may be executed: anybody can have
    made it.
    """
    from left4me_host import syscalls  # here: hardly anybody keeps one

    fds = [os.open(path, os.O_RDONLY) for path in ("/proc", "/proc/self/ns/mnt")]
    try:
        fds.append(os.open(space, os.O_PATH))
        if os.fstat(fds[2]).st_dev != os.fstat(fds[1]).st_dev:
            return []  # somebody leads us to what is no namespace, and may not be opened
        fds.append(os.open(f"/proc/self/fd/{fds[2]}", os.O_RDONLY))
        syscalls.enter_mount_namespace(fds[3])
        try:
            there = os.open("self/mountinfo", os.O_RDONLY, dir_fd=fds[0])
        finally:
            try:
                syscalls.enter_mount_namespace(fds[1])
            except OSError:
                os._exit(1)  # nothing may be done in there
        return mountinfo.mounts(there)
    except OSError:
        return []  # it is gone meanwhile
    finally:
        for fd in fds:
            os.close(fd)


def _mounts_seen_by(task: str) -> list[Mount]:
    try:
        return mountinfo.mounts(f"/proc/{task}/mountinfo")
    except OSError:
        return []  # it has ended


def mounts_of(tasks: list[str]) -> list[Mount]:
    """Return the mounts of the mount namespace that tasks live in."""
    # What lies outside a task's root is not in it. The first task may end while we look: then the next one tells.
    seen = (_mounts_seen_by(task) for task in tasks if _link(f"/proc/{task}/root") == "/")
    entered = (_mounts_in(f"/proc/{task}/ns/mnt") for task in tasks)
    return next(filter(None, seen), []) or next(filter(None, entered), [])


def _kept(spaces: dict[str, list[str]], mounts: dict[str, list[Mount]]) -> Iterator[tuple[str, str, str, str]]:
    """Yield (task, kind, space, path) of all that keeps a mount namespace with no need to live in it."""
    for space, tasks in spaces.items():
        for task in tasks:
            for fd in _listed(f"/proc/{task}/fd"):
                path = f"/proc/{task}/fd/{fd}"
                if (name := _link(path)).startswith("mnt:["):
                    yield task, f"fd {fd}", name, path
        for mount in mounts[space]:
            if mount.root.startswith("mnt:["):
                yield tasks[0], f"mount {mount.point}", mount.root, f"/proc/{tasks[0]}/root{mount.point}"


def spaces() -> dict[str, list[str]]:
    """Return the tasks of each mount namespace, as names below /proc, but this process; PID 1 comes first in its own.

    A thread may have a working directory, files, and a namespace that are not its process's.
    """
    found: dict[str, list[str]] = {}
    for pid in sorted((name for name in os.listdir("/proc") if name.isdigit() and name != str(os.getpid())), key=int):
        threads = [f"{pid}/task/{thread}" for thread in _listed(f"/proc/{pid}/task") if thread != pid]
        for task in (pid, *threads):
            found.setdefault(_link(f"/proc/{task}/ns/mnt"), []).append(task)
    found.pop("?", None)  # it has ended
    return found


def holders(server: str) -> list[Holder]:
    """Return every process that holds a server's overlay, also one that is unmounted and lives on."""
    known = frozenset(filter(None, [instance.noted(server)]))
    tasks_of = spaces()
    mounts = {space: mounts_of(tasks) for space, tasks in tasks_of.items()}
    kept = list(_kept(tasks_of, mounts))
    for _task, _kind, space, path in kept:
        if space not in mounts:  # nobody lives in it
            mounts[space] = _mounts_in(path)
    there = {space: copies(server, each) for space, each in mounts.items()}
    now = frozenset(copy.device for each in there.values() for copy in each)
    init, merged = _link("/proc/1/ns/mnt"), layout.merged(server)
    # A namespace that gets the host's unmounts is none in the way, such as that of any sandboxed service. But the
    # server's own is, and one that was copied from the host and cut off.
    peers = {peer for copy in there[init] for peer in copy.peers}
    in_the_way = {space for space, each in there.items() if any(not copy.peers & peers for copy in each)} - {init}
    points = {copy.point for copy in there[init]} - {merged}
    points |= {mount.point for mount in mounts[init] if mount.point.startswith(f"{merged}/")}
    found = [Holder(1, _command("1"), "mount", point) for point in points]
    for space, tasks in tasks_of.items():
        # The name before the references: a process that becomes another program may let go of some.
        named = {task: _command(task) for task in tasks}
        referring = {task: _held_by(task, server, now, known - now) for task in tasks} if now or known else {}
        if space != init and there[space] and any(referring.values()):
            in_the_way.add(space)
        for task, references in referring.items():
            process, command = task.partition("/")[0], named[task]
            found += [Holder(int(process), command, kind, path) for kind, path in references]
            if space in in_the_way:
                found.append(Holder(int(process), command, "mount namespace", space))
    for task, kind, space, _path in kept:
        if space in in_the_way:
            found.append(Holder(int(task.partition("/")[0]), _command(task), kind, space))
    return sorted(set(found))


def _held_by(task: str, server: str, now: frozenset[str], gone: frozenset[str]) -> list[tuple[str, str]]:
    """Return what of a process refers to the overlay: its devices `now`, and those `gone` from every namespace."""
    references = list(_references(task, now | gone, layout.merged(server)))
    if any(device in gone for _kind, _path, device in references):
        # The kernel uses a number again as soon as it is free: then it is another mount that the process sees.
        upper = f"upperdir={layout.runtime(server)}/upper"
        gone -= {mount.device for mount in _mounts_seen_by(task) if upper not in mount.options}
    return [(kind, path) for kind, path, device in references if not device or device in now | gone]
