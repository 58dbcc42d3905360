"""Find the processes that keep a server's overlay busy, and how.

A process keeps a mount busy, from any mount namespace, by its working directory, root, program, open files or mappings.
A process in another mount namespace also keeps that namespace's copy of the mount, which can outlive the unit.
The number in /proc/PID/ns/mnt does not show whether a process has such a copy, because the kernel reuses these numbers.
So this module reads each process's mountinfo, and compares the devices of all its references with the overlay's device.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from left4me_host import instance, layout, mountinfo, procfs
from left4me_host.mountinfo import Mount


class Holder(NamedTuple):
    """A process that holds the overlay; `kind` is cwd, root, exe, fd N, map, mount, mount POINT or mount namespace."""

    pid: int
    command: str
    kind: str
    path: str

    def __str__(self) -> str:
        return instance.plain(f"pid {self.pid} ({self.command}) by its {self.kind}: {self.path}")


def _device(path: str) -> str:
    """Return major:minor as mountinfo writes it; empty if the process has ended or the path does not resolve."""
    try:
        number = os.stat(path).st_dev
    except OSError:
        return ""
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
    """Return which `mounts` (of one mount namespace) are a server's overlay, at any mount point."""
    upper = f"upperdir={layout.runtime(server)}/upper"
    return [mount for mount in mounts if upper in mount.options]


def _references(task: str, devices: frozenset[str], merged: str) -> Iterator[tuple[str, str, str]]:
    """Yield (kind, path, device) of a task's references to `devices`; device is empty for a mapping below `merged`."""
    base = f"/proc/{task}"
    links = [("cwd", f"{base}/cwd"), ("root", f"{base}/root"), ("exe", f"{base}/exe")]
    for kind, link in [*links, *((f"fd {name}", f"{base}/fd/{name}") for name in _listed(f"{base}/fd"))]:
        if (device := _device(link)) in devices:
            yield kind, _link(link), device
    if "/" in task:
        return  # threads share their process's memory
    # One mapping per file is enough. The device comes from map_files, because maps shows the lower layer's device on
    # older kernels. A path below the overlay counts too.
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
        elif (device := _device(link)) in devices:
            yield "map", _link(link), device


def _mounts_in(space: str) -> list[Mount]:
    """Enter a mount namespace, given its path below /proc, and return its mounts; none if it no longer exists.

    For namespaces in which no process sees all mounts. Any user may have made them, so execute no program in them.
    """
    from left4me_host import syscalls  # here: rarely needed

    fds = [os.open(path, os.O_RDONLY) for path in ("/proc", "/proc/self/ns/mnt")]
    try:
        fds.append(os.open(space, os.O_PATH))
        if os.fstat(fds[2]).st_dev != os.fstat(fds[1]).st_dev:
            return []  # not a namespace; opening it may have side effects
        fds.append(os.open(f"/proc/self/fd/{fds[2]}", os.O_RDONLY))
        syscalls.enter_mount_namespace(fds[3])
        try:
            there = os.open("self/mountinfo", os.O_RDONLY, dir_fd=fds[0])
        finally:
            try:
                syscalls.enter_mount_namespace(fds[1])
            except OSError:
                os._exit(1)  # nothing else may run in that namespace
        return mountinfo.mounts(there)
    except OSError:
        return []
    finally:
        for fd in fds:
            os.close(fd)


def _mounts_seen_by(task: str) -> list[Mount]:
    try:
        return mountinfo.mounts(f"/proc/{task}/mountinfo")
    except OSError:
        return []


def mounts_of(tasks: list[str]) -> list[Mount]:
    """Return the mounts of the mount namespace that these tasks share."""
    # mountinfo omits mounts outside the task's root. A task may end meanwhile; then the next one is read.
    seen = (_mounts_seen_by(task) for task in tasks if _link(f"/proc/{task}/root") == "/")
    entered = (_mounts_in(f"/proc/{task}/ns/mnt") for task in tasks)
    return next(filter(None, seen), []) or next(filter(None, entered), [])


def _kept(spaces: dict[str, list[str]], mounts: dict[str, list[Mount]]) -> Iterator[tuple[str, str, str, str]]:
    """Yield (task, kind, space, path) of each open file and mount that keeps a mount namespace (`space`)."""
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
    """Return all tasks (names below /proc) except this process by mount namespace, in the order of their PIDs.

    Threads are included: a thread may have its own working directory, files and namespace.
    """
    found: dict[str, list[str]] = {}
    for pid in sorted((name for name in os.listdir("/proc") if name.isdigit() and name != str(os.getpid())), key=int):
        threads = [f"{pid}/task/{thread}" for thread in _listed(f"/proc/{pid}/task") if thread != pid]
        for task in (pid, *threads):
            found.setdefault(_link(f"/proc/{task}/ns/mnt"), []).append(task)
    found.pop("?", None)  # tasks that have ended
    return found


def holders(server: str) -> list[Holder]:
    """Return every process that holds a server's overlay, mounted or not."""
    known = frozenset(filter(None, [instance.noted(server)]))
    tasks_of = spaces()
    mounts = {space: mounts_of(tasks) for space, tasks in tasks_of.items()}
    kept = list(_kept(tasks_of, mounts))
    for _task, _kind, space, path in kept:
        if space not in mounts:  # no process is in it
            mounts[space] = _mounts_in(path)
    there = {space: copies(server, each) for space, each in mounts.items()}
    now = frozenset(copy.device for each in there.values() for copy in each)
    init, merged = _link("/proc/1/ns/mnt"), layout.merged(server)
    # A namespace that receives the host's unmounts, such as a sandboxed service's, does not hold the overlay. The
    # server's own namespace does, and so does a copy of the host's that no longer receives unmounts.
    peers = {peer for copy in there[init] for peer in copy.peers}
    in_the_way = {space for space, each in there.items() if any(not copy.peers & peers for copy in each)} - {init}
    points = {copy.point for copy in there[init]} - {merged}
    points |= {mount.point for mount in mounts[init] if mount.point.startswith(f"{merged}/")}
    found = [Holder(1, _command("1"), "mount", point) for point in points]
    for space, tasks in tasks_of.items():
        # Read the name before the references: an execve(2) may release some of them.
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


def _held_by(task: str, server: str, mounted: frozenset[str], unmounted: frozenset[str]) -> list[tuple[str, str]]:
    """Return (kind, path) of a task's references to an overlay with these mounted and unmounted devices."""
    references = list(_references(task, mounted | unmounted, layout.merged(server)))
    if any(device in unmounted for _kind, _path, device in references):
        # The kernel reuses the number of an unmounted device: the task may see another filesystem.
        upper = f"upperdir={layout.runtime(server)}/upper"
        unmounted -= {mount.device for mount in _mounts_seen_by(task) if upper not in mount.options}
    return [(kind, path) for kind, path, device in references if not device or device in mounted | unmounted]
