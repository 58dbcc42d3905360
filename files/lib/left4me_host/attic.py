"""What the attic holds: what resets, undos and removals put aside."""

from __future__ import annotations

import os
from dataclasses import dataclass

from left4me_host import instance, layout, reset


@dataclass(frozen=True)
class Aside:
    """Something in the attic as `attic --json` has it; `when` is a WHEN of reset --undo, `by` what put it there."""

    id: str
    when: str
    by: str
    next: bool  # the next undo brings it back
    path: str


def _by(name: str) -> str:
    if name.endswith(reset.BY_UNDO):
        return "undo"
    return "removal" if os.path.lexists(f"{layout.ATTIC}/{name}/port") else "reset"


def rows() -> list[Aside]:
    """Return what the attic holds of each server, by id, the latest first."""
    found = []
    for server in sorted({name.partition("@")[0] for name in os.listdir(layout.ATTIC)}):
        if not instance.ID.fullmatch(server):
            continue
        names = reset.entries(server)[::-1]
        following = next((name for name in names if not name.endswith(reset.BY_UNDO)), "")
        found += [
            Aside(server, reset.time_of(name), _by(name), name == following, f"{layout.ATTIC}/{name}") for name in names
        ]
    return found


def table(listed: list[Aside]) -> list[list[str]]:
    """Return rows of text with their headings first."""
    lines = [["ID", "WHEN", "PUT ASIDE BY", "UNDO"]]
    return lines + [[row.id, row.when, row.by, "next" if row.next else "-"] for row in listed]
