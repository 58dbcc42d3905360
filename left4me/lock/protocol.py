"""The lock request to holder.py, and the fence that each command passes before it changes a host."""

from __future__ import annotations

import getpass
import json
import shlex
import socket

from left4me import connection, revision
from left4me_host import layout

SILENCE = 60
"""Seconds without a heartbeat after which the host frees the lock."""
HEARTBEAT = 15
"""Seconds between two heartbeats."""
TOKEN = "LEFT4ME_LOCK_TOKEN"
"""The environment variable with which a rollout passes the token of its locks to a deploy."""
LOCKED = "locked"
"""The answer of holder.py if it has the lock; any other answer is the reason why not."""


def request(token: str, *, given: bool = False, waits: bool = False) -> str:
    """Return the lock request, the argument of holder.py.

    With `given` the token is that of a rollout which holds the lock already. With `waits` holder.py takes the lock at
    the first heartbeat.
    """
    who = f"{getpass.getuser()}@{socket.gethostname()}"
    options = {"given": given, "waits": waits, "silence": SILENCE, "mark": connection.MARK}
    return json.dumps({"who": who, "revision": revision.checked_out(), "token": token, **options})


def fence(token: str) -> str:
    """Return a shell prefix that runs a command only if the lock still has this token, else fails with a message.

    Another deploy may take the lock after a minute of silence, or while the command is on its way. It then waits for
    all commands that have passed the fence: they and their children inherit file descriptor 9 with the shared flock.
    """
    return (
        f"exec 9<{layout.DEPLOY_LOCK} && flock --shared 9 && grep --quiet --fixed-strings {shlex.quote(token)} <&9 || "
        "{ echo 'this deploy lost its lock to another one; wait for it to end, then deploy again' >&2; exit 1; };"
    )
