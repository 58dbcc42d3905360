"""Removal of a server that is not declared any more. What it wrote goes to the attic, where a reset's undo finds it.

So do its RCON password, where the host made it, and its port, which a deploy gives it again.
"""

from __future__ import annotations

import glob
import os

from left4me_host import attic, filetree, instance, layout, lifecycle, reset


def to_attic(server: str) -> str:
    """Move a runtime directory that nobody uses to the attic, and return where it is. Raises Failed."""
    path, into = layout.runtime(server), f"{layout.ATTIC}/{attic.new_name(server)}"
    with instance.unmounted(server):
        if instance.noted(server):
            raise instance.Failed(
                f"server {server}: its overlay may be in use still; l4d2ctl stop {server} tells by whom"
            )
        os.rename(path, into)
    instance.sync_directory(layout.ATTIC)
    instance.sync_directory(os.path.dirname(path))
    return into


def _keep(server: str) -> None:
    """Lay the RCON password that the host made and the port beside what a server wrote, where only root can read."""
    made = f"{layout.SECRETS}/{server}/{reset.PASSWORD}"
    kept = f"{layout.runtime(server)}/{reset.PASSWORD}"
    if reset.is_plain(made):
        if os.path.lexists(kept):  # from a removal that was killed
            os.unlink(kept)
        os.link(made, kept, follow_symlinks=False)
    if port := instance.environment(server).get("LEFT4ME_PORT"):
        with open(f"{layout.runtime(server)}/port", "w", encoding="ascii") as file:
            file.write(f"{port}\n")
            file.flush()
            os.fsync(file.fileno())
    instance.sync_directory(layout.runtime(server))


def remove(server: str) -> None:
    """Stop a server and take away all of it but its user. Raises Failed, or OSError.

    Any of it may be gone already. What declares it to l4d2ctl goes last: until then there is something to find again.
    """
    with reset.alone(server):
        lifecycle.stop([server], held=False)
        if os.path.lexists(layout.runtime(server)):
            reset.finish_undo(server)
            _keep(server)
            to_attic(server)
        unit = layout.unit(server)
        for path in (
            f"{layout.SECRETS}/{server}",
            f"{layout.HELD}/{server}",
            *glob.glob(f"{layout.RUN}/{server}.*"),
            f"{layout.WANTS}/{unit}",
            f"{layout.OWN_UNITS}/{unit}.d",
            f"{layout.SERVERS}/{server}",
        ):
            if os.path.lexists(path):
                filetree.remove(path)
                instance.sync_directory(os.path.dirname(path))
