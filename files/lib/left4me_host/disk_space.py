"""The space that all servers share, and the server that uses most of it."""

from __future__ import annotations

import glob
import os
import subprocess
from dataclasses import dataclass

from left4me_host import layout

LOW = 0.05
"""The part of the bytes or inodes below which a filesystem is nearly full: ext4 reserves as much for root by default,
which servers use up too, because an overlay writes as root."""
_PATIENCE = 20
"""Seconds for one look at all files: a server can have a million."""


@dataclass(frozen=True)
class Left:
    """What is left of a filesystem; `kind` is what there is least of, bytes or inodes."""

    kind: str
    part: float
    amount: int


def left() -> Left:
    """Return what the filesystem of /var/lib/left4me has left."""
    found = os.statvfs(layout.VAR)
    space = Left("bytes", found.f_bfree / max(found.f_blocks, 1), found.f_bfree * found.f_frsize)
    if not found.f_files:  # btrfs has no fixed number
        return space
    return min(space, Left("inodes", found.f_ffree / found.f_files, found.f_ffree), key=lambda each: each.part)


def largest(kind: str) -> tuple[str, int] | None:
    """Return the directory of a server, or entry of the attic, that uses most, and how many bytes or inodes.

    None if there is none, or if du needs longer than 20 seconds. du follows no symlinks and enters no mounts.
    """
    paths = glob.glob(f"{layout.RUNTIME}/[!_]*/upper") + glob.glob(f"{layout.ATTIC}/[!_]*")  # not of smoke tests
    if not paths:
        return None
    unit = "--inodes" if kind == "inodes" else "--block-size=1"
    command = ["du", "--summarize", "--one-file-system", unit, "--", *paths]
    try:
        # It fails if a running server removes files meanwhile, but prints the sums.
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        return None
    sums = [(int(number), path) for number, _, path in (line.partition("\t") for line in done.stdout.splitlines())]
    number, path = max(sums, default=(0, ""))
    return (path, number) if path else None
