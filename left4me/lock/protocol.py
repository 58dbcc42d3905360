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
MOST = 64 << 10
"""Characters that a host may print before its answer to a lock request."""
TOKEN = "LEFT4ME_LOCK_TOKEN"
"""The environment variable in which a rollout passes its lock token to a deploy."""
LOCKED = "locked"
"""holder.py's answer when it has the lock; any other answer is the reason of a refusal."""


def operator() -> str:
    """Return who works where, such as anna@desk."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def request(token: str, *, given: bool = False, waits: bool = False) -> str:
    """Return the lock request, the argument of holder.py, which explains it."""
    options = {"given": given, "waits": waits, "silence": SILENCE, "mark": connection.MARK}
    return json.dumps({"who": operator(), "revision": revision.checked_out(), "token": token, **options})


def fence(token: str) -> str:
    """Return a shell prefix that fails with a message unless the lock file has this token.

    Another deploy may take the lock after SILENCE seconds, or while a command is on its way. That deploy waits for
    commands that have passed the fence: these and their children inherit file descriptor 9 with the shared flock.
    """
    return (
        f"exec 9<{layout.DEPLOY_LOCK} && flock --shared 9 && grep --quiet --fixed-strings {shlex.quote(token)} <&9 || "
        "{ echo 'this deploy lost its lock to another one; wait for it to end, then deploy again' >&2; exit 1; };"
    )
