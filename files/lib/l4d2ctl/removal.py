"""Removal of a server that is not declared any more. What it wrote goes to the attic, where a reset's undo finds it.

So do its RCON password, where the host made it, and its port, which a deploy gives it again.
"""

from __future__ import annotations

import glob
import os

from content import tree
from l4d2ctl import lifecycle, reset, units
from l4d2ctl import server as one


def to_attic(server: str) -> str:
    """Move a runtime directory that nobody uses to the attic, and return where it is. Raises Failed."""
    path, into = one.runtime(server), f"{reset.ATTIC}/{reset.attic_name(server)}"
    with one.unmounted(server):
        if one.noted(server):
            raise one.Failed(f"server {server}: its overlay may be in use still; l4d2ctl stop {server} tells by whom")
        os.rename(path, into)
    one.sync_directory(reset.ATTIC)
    one.sync_directory(os.path.dirname(path))
    return into


def _keep(server: str) -> None:
    """Lay the RCON password that the host made and the port beside what a server wrote, where only root can read."""
    made = f"{one.VAR}/secrets/{server}/{reset.PASSWORD}"
    kept = f"{one.runtime(server)}/{reset.PASSWORD}"
    if reset.is_plain(made):
        if os.path.lexists(kept):  # from a removal that was killed
            os.unlink(kept)
        os.link(made, kept, follow_symlinks=False)
    if port := one.environment(server).get("LEFT4ME_PORT"):
        with open(f"{one.runtime(server)}/port", "w", encoding="ascii") as file:
            file.write(f"{port}\n")
            file.flush()
            os.fsync(file.fileno())
    one.sync_directory(one.runtime(server))


def remove(server: str) -> None:
    """Stop a server and take away all of it but its user. Raises Failed, or OSError.

    Any of it may be gone already. What declares it to l4d2ctl goes last: until then there is something to find again.
    """
    with reset.alone(server):
        lifecycle.stop([server], held=False)
        if os.path.lexists(one.runtime(server)):
            reset.finish_undo(server)
            _keep(server)
            to_attic(server)
        unit = one.unit(server)
        for path in (
            f"{one.VAR}/secrets/{server}",
            f"{one.HELD}/{server}",
            *glob.glob(f"{one.RUN}/{server}.*"),
            f"{units.WANTS}/{unit}",
            f"{units.DIRECTORIES[0]}/{unit}.d",
            f"{one.ETC}/{server}",
        ):
            if os.path.lexists(path):
                tree.remove(path)
                one.sync_directory(os.path.dirname(path))
