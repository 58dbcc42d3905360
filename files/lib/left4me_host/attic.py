"""The attic keeps the files of reset, undone and removed servers, in directories whose names sort by time.

Resets and removals create ID@TIME, undos create ID@TIME-undo. For each server left4me-attic.service keeps the latest
`attic_keep` of either form.
"""

from __future__ import annotations

import os
import time

from left4me_host import instance, layout

BY_UNDO = "-undo"


def time_of(name: str) -> str:
    """Return the time in an attic entry's name, such as 20261128T150312.123456789; empty for another name."""
    text = name.partition("@")[2].removesuffix(BY_UNDO)
    digits = text[:8] + text[9:15] + text[16:]
    return text if digits.isdecimal() and len(digits) > 14 and text[8] + text[15] == "T." else ""


def entries(server: str) -> list[str]:
    """Return the names of a server's entries, oldest first."""
    return sorted(name for name in os.listdir(layout.ATTIC) if name.partition("@")[0] == server and time_of(name))


def new_name(server: str) -> str:
    """Return a name for a new entry that sorts after the server's others, even if the clock went back."""
    now = time.time_ns()
    text = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now // 10**9))}.{now % 10**9:09d}"
    latest = max(map(time_of, entries(server)), default="")
    if text <= latest:
        # Add one to the latest, as a number: the result must sort last but need not be a valid time.
        digits = f"{int(latest[:8] + latest[9:15] + latest[16:25].ljust(9, '0')) + 1:023d}"
        text = f"{digits[:8]}T{digits[8:14]}.{digits[14:]}"
    return f"{server}@{text}"


def _by(name: str) -> str:
    if name.endswith(BY_UNDO):
        return "undo"
    return "removal" if os.path.lexists(f"{layout.ATTIC}/{name}/port") else "reset"


def rows() -> list[dict[str, object]]:
    """Return all entries as `attic --json` prints them, by server id, latest first.

    `when` is the WHEN of `reset --undo`. `by` is reset, undo or removal. The next undo brings back the entry with
    `next`.
    """
    found: list[dict[str, object]] = []
    for server in sorted({name.partition("@")[0] for name in os.listdir(layout.ATTIC)}):
        names = entries(server)[::-1] if instance.ID.fullmatch(server) else []
        following = next((name for name in names if not name.endswith(BY_UNDO)), "")
        for name in names:
            about = {"id": server, "when": time_of(name), "by": _by(name), "next": name == following}
            found.append({**about, "path": f"{layout.ATTIC}/{name}"})
    return found


def table(listed: list[dict[str, object]]) -> list[list[str]]:
    heading = ["ID", "WHEN", "MOVED BY", "UNDO"]
    return [
        heading,
        *([*(str(row[key]) for key in ("id", "when", "by")), "next" if row["next"] else "-"] for row in listed),
    ]
