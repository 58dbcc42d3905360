"""What those who want a host's lock say to holder.py, and what each command looks at before it changes a host."""

from __future__ import annotations

import getpass
import json
import shlex
import socket

from left4me import connection, revision
from left4me_host import layout

SILENCE = 60
"""Seconds after which a host frees what it hears nothing for."""
HEARTBEAT = 15
"""Seconds between two signs of life."""
TOKEN = "LEFT4ME_LOCK_TOKEN"
"""What hands the token of a held lock to a deploy, in its environment."""
LOCKED = "locked"
"""What the holder says when it holds the lock; anything else is why not."""


def request(token: str, *, given: bool = False, waits: bool = False) -> str:
    """Return the argument of holder.py.

    A `given` token is somebody else's, who holds the lock still; what `waits` begins when it hears something.
    """
    who = f"{getpass.getuser()}@{socket.gethostname()}"
    how = {"given": given, "waits": waits, "silence": SILENCE, "mark": connection.MARK}
    return json.dumps({"who": who, "revision": revision.checked_out(), "token": token, **how})


def fence(token: str) -> str:
    """Return what a shell does before a command that changes the host: it is run only while the lock is not another's.

    The lock may have gone to another: after a minute of silence, or while the command was on its way. Whoever takes it
    then waits for what has passed this fence already. All that the command starts inherits 9.
    """
    return (
        f"exec 9<{layout.DEPLOY_LOCK} && flock --shared 9 && grep --quiet --fixed-strings {shlex.quote(token)} <&9 || "
        "{ echo 'this deploy lost its lock to another one; wait for that, then deploy again' >&2; exit 1; };"
    )
