"""Remove servers that are no longer declared. Their files move to the attic, for `l4d2ctl reset --undo`.

The RCON password, if the host made it, and the port move too; a later deploy assigns the port again.
"""

from __future__ import annotations

import glob
import os

from left4me_host import attic, filetree, instance, layout, lifecycle, reset, server_lock


def to_attic(server: str) -> str:
    """Move the runtime directory of a stopped server to the attic and return its new path. Raises Failed."""
    path, into = layout.runtime(server), f"{layout.ATTIC}/{attic.new_name(server)}"
    with instance.unmounted(server):
        if instance.noted(server):
            raise instance.Failed(
                f"server {server}: its overlay may still be in use; l4d2ctl stop {server} names the holders"
            )
        os.rename(path, into)
    instance.sync_directory(layout.ATTIC)
    instance.sync_directory(os.path.dirname(path))
    return into


def _keep(server: str) -> None:
    """Put the RCON password, if the host made it, and the port into the runtime directory, which only root can read."""
    made = f"{layout.SECRETS}/{server}/{reset.PASSWORD}"
    kept = f"{layout.runtime(server)}/{reset.PASSWORD}"
    if reset.is_plain(made):
        if os.path.lexists(kept):  # from an interrupted removal
            os.unlink(kept)
        os.link(made, kept, follow_symlinks=False)
    if port := instance.environment(server).get("LEFT4ME_PORT"):
        with open(f"{layout.runtime(server)}/port", "w", encoding="ascii") as file:
            file.write(f"{port}\n")
            file.flush()
            os.fsync(file.fileno())
    instance.sync_directory(layout.runtime(server))


def remove(server: str) -> None:
    """Stop a server and remove everything except its user. Raises Failed or OSError.

    Files may be missing already. SERVERS/ID is removed last, so that a deploy repeats an interrupted removal.
    """
    with server_lock.held([server]) as lock:
        lock.note(0, "left4me-remove")
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
