"""Who keeps a server's overlay busy, and how: the question that cost days.

A reference pins a mount, whatever mount namespace it is in: a working directory, a root, an open file, a mapping, a
running program. A process that merely lives in the unit's mount namespace pins that namespace's copy of the mount,
and a copy in a foreign namespace outlives the unit; /proc/PID/ns/mnt alone proves neither, since its numbers are
used again. So each process's own mountinfo is read, and everything it refers to is compared with the mount's device.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from l4d2ctl import server as one


@dataclass(frozen=True, order=True)
class Holder:
    """A process, and what of it holds the overlay: cwd, root, exe, fd, map or mount namespace."""

    pid: int
    command: str
    kind: str
    path: str

    def __str__(self) -> str:
        """Return one line."""
        return f"pid {self.pid} ({self.command}) by its {self.kind}: {self.path}"


def _device(path: str) -> tuple[int, int] | None:
    try:
        about = os.stat(path)
    except OSError:
        return None  # the process has ended, or the reference leads nowhere
    return os.major(about.st_dev), os.minor(about.st_dev)


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


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


@dataclass(frozen=True)
class Copy:
    """A server's overlay as one mount namespace has it: its device, and the peer groups it gets unmounts from."""

    device: tuple[int, int]
    peers: frozenset[str]


def copies(server: str, mounts: str) -> set[Copy]:
    """Return the copies of a server's overlay, wherever it is mounted, in the text of a mountinfo file."""
    upper = f"upperdir={one.runtime(server)}/upper"
    found = set()
    for line in mounts.splitlines():
        fields = line.split()
        if upper in fields[-1].split(","):
            major, _, minor = fields[2].partition(":")
            peers = frozenset(field.partition(":")[2] for field in fields[6 : fields.index("-")])
            found.add(Copy((int(major), int(minor)), peers))
    return found


def _references(pid: str, wanted: frozenset[tuple[int, int]], merged: str) -> Iterator[tuple[str, str]]:
    base = f"/proc/{pid}"
    for kind in ("cwd", "root", "exe"):
        if _device(f"{base}/{kind}") in wanted:
            yield kind, _link(f"{base}/{kind}")
    for name in _listed(f"{base}/fd"):
        if _device(f"{base}/fd/{name}") in wanted:
            yield f"fd {name}", _link(f"{base}/fd/{name}")
    seen = set()
    # maps names the device of the file in the layer below on older kernels: its path tells on all of them.
    for line in _read(f"{base}/maps").splitlines():
        path = line.split(maxsplit=5)[5] if line.count(" ") > 4 and "/" in line else ""
        if path.startswith(f"{merged}/") and path not in seen:
            seen.add(path)
            yield "map", path
    for name in _listed(f"{base}/map_files"):
        path = f"{base}/map_files/{name}"
        if _device(path) in wanted and (target := _link(path)) not in seen:
            seen.add(target)
            yield "map", target


def holders(server: str, known: frozenset[tuple[int, int]] = frozenset()) -> list[Holder]:
    """Return every process that holds a server's overlay.

    `known` are devices (major, minor) that the overlay had before it was unmounted.
    """
    me = str(os.getpid())
    spaces = {pid: _link(f"/proc/{pid}/ns/mnt") for pid in os.listdir("/proc") if pid.isdigit() and pid != me}
    first = {space: pid for pid, space in spaces.items()}
    there = {space: copies(server, _read(f"/proc/{pid}/mountinfo")) for space, pid in first.items()}
    init = _link("/proc/1/ns/mnt")
    wanted = known.union(copy.device for each in there.values() for copy in each)
    found = {pid: list(_references(pid, wanted, one.merged(server))) for pid in (spaces if wanted else ())}
    # A namespace that gets the host's unmounts is none in the way, such as that of any sandboxed service. But the
    # server's own is, and one that was copied from the host and cut off.
    peers = {peer for copy in there.get(init, ()) for peer in copy.peers}
    in_the_way = {spaces[pid] for pid, references in found.items() if references}
    in_the_way |= {space for space, each in there.items() if any(not copy.peers & peers for copy in each)}
    for pid, references in found.items():
        if spaces[pid] != init and spaces[pid] in in_the_way and there[spaces[pid]]:
            references.append(("mount namespace", spaces[pid]))
    return sorted(
        Holder(int(pid), _read(f"/proc/{pid}/comm").strip() or "?", kind, path)
        for pid, references in found.items()
        for kind, path in references
    )


def devices_now(server: str) -> frozenset[tuple[int, int]]:
    """Return the devices of a server's overlay as it is mounted on the host."""
    return frozenset(copy.device for copy in copies(server, _read("/proc/1/mountinfo")))


def watch(server: str, interval: float = 0.02) -> Iterator[tuple[float, bool, list[Holder]]]:
    """Yield (seconds since the call, mounted, holders), first at once, until the overlay is gone and nobody holds it.

    `interval` in seconds is between two looks; /proc has nothing to wait on.
    """
    known = devices_now(server)
    begin = time.monotonic()
    while True:
        mounted = one.mounted(server)
        found = holders(server, known)
        yield time.monotonic() - begin, mounted, found
        if not mounted and not found:
            return
        time.sleep(interval)


def as_json(found: list[Holder]) -> list[dict[str, object]]:
    """Return holders as JSON has them."""
    return [asdict(holder) for holder in found]
