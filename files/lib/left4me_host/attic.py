"""The attic: what resets, undos and removals put aside of each server, by names that sort by time.

ID@TIME is what a reset or a removal put aside, ID@TIME-undo what an undo did. How much stays is `attic_keep` of the
data, in left4me-attic.service, whose program /usr/local/libexec/left4me/left4me-attic removes the rest.
"""

from __future__ import annotations

import os
import time

from left4me_host import instance, layout

BY_UNDO = "-undo"


def time_of(name: str) -> str:
    """Return the time in a name in the attic, such as 20261128T150312.123456789; empty where it is none of ours."""
    text = name.partition("@")[2].removesuffix(BY_UNDO)
    digits = text[:8] + text[9:15] + text[16:]
    return text if digits.isdecimal() and len(digits) > 14 and text[8] + text[15] == "T." else ""


def entries(server: str) -> list[str]:
    """Return the names of what the attic holds of a server, in order."""
    return sorted(name for name in os.listdir(layout.ATTIC) if name.partition("@")[0] == server and time_of(name))


def new_name(server: str) -> str:
    """Return a new name for something of a server in the attic: after all that are there, whatever the clock says."""
    now = time.time_ns()
    text = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now // 10**9))}.{now % 10**9:09d}"
    latest = max(map(time_of, entries(server)), default="")
    if text <= latest:
        # One more than the latest, read as a number: it need not be a time, it has to come after.
        after = f"{int(latest[:8] + latest[9:15] + latest[16:25].ljust(9, '0')) + 1:023d}"
        text = f"{after[:8]}T{after[8:14]}.{after[14:]}"
    return f"{server}@{text}"


def _by(name: str) -> str:
    if name.endswith(BY_UNDO):
        return "undo"
    return "removal" if os.path.lexists(f"{layout.ATTIC}/{name}/port") else "reset"


def rows() -> list[dict[str, object]]:
    """Return what the attic holds of each server, by id, the latest first, as `attic --json` has it.

    `when` is a WHEN of reset --undo, `by` what put it there, `next` what the next undo brings back.
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
    """Return rows of text with their headings first."""
    lines = [["ID", "WHEN", "PUT ASIDE BY", "UNDO"]]
    return lines + [
        [str(row["id"]), str(row["when"]), str(row["by"]), "next" if row["next"] else "-"] for row in listed
    ]
